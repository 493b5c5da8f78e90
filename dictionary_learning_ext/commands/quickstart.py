"""`vsae quickstart`: the first command a newcomer runs."""

from dataclasses import dataclass
from pathlib import Path

from ..config.presets import quickstart
from ..config.run_config import RunConfig
from .flags import Command


@dataclass(frozen=True)
class QuickstartFlags:
    """Train a TopK SAE and two vSAEs, compare them and write a report."""

    save_dir: str = "runs/quickstart"
    """The folder for the three run folders and the report."""
    steps: int = 1000
    """Training steps of each SAE."""
    eval_tokens: int = 100_000
    """Held-out tokens to evaluate on."""
    seed: int = 0
    """Seeds the initial weights and the noise of all three SAEs."""
    report: bool = True
    """Write report.html, which shows what the three SAEs learned."""


def run(flags: QuickstartFlags) -> None:
    from ..evaluation.comparison import printed
    from ..run_folder.reading import read_metrics
    from ..training.loop import train

    config = RunConfig(
        save_dir=flags.save_dir, steps=flags.steps, eval_tokens=flags.eval_tokens, overwrite=True
    )
    saes = quickstart(flags.steps, flags.seed)
    print(
        "Training three SAEs on blocks.0.hook_resid_post of the embedded language model,\n"
        "all on the same batches:\n"
        "  top_k                    a TopK SAE\n"
        "  vsae_paper               the vSAE of the paper's equations: sigma = 1, noise on both\n"
        "  vsae_annealed_selection  a vSAE with noise on the selection only, annealed to 0"
    )
    folders = train(config, saes)
    print("\nOn held-out text:\n")
    print(printed({str(folder): read_metrics(folder) for folder in folders.values()}))
    one = folders["vsae_annealed_selection"]
    if flags.report:
        print("\nWriting the report:")
        path = _report(flags, one, [folder for folder in folders.values() if folder != one])
        print(f"\nOpen {path} in a browser to see their features, maps and training.")
    print(
        f"\nEach folder in {flags.save_dir} holds ae.pt, config.json, metrics.jsonl and metrics.json.\n"
        "\nNext:\n"
        f"  vsae train --config {one} --noise-on values --save-dir runs/values\n"
        f"  vsae compare {one} runs/values\n"
        "  vsae train --help"
    )


def _report(flags: QuickstartFlags, folder: Path, against: list[Path]) -> Path:
    from ..config.report_options import ReportOptions
    from ..report import write_report
    from ..run_folder.names import REPORT

    # A short run gets a short report.
    options = ReportOptions(tokens=max(1, flags.eval_tokens), seed=flags.seed)
    return write_report(
        folder,
        against,
        Path(flags.save_dir) / REPORT,
        options=options,
        on_step=lambda step: print(f"  {step} …", flush=True),
    )


COMMAND = Command("quickstart", QuickstartFlags, run)
