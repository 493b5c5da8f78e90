"""`vsae quickstart`: the first thing that a newcomer runs."""

from dataclasses import dataclass
from pathlib import Path

from ..config.presets import quickstart
from ..config.run_config import RunConfig


@dataclass(frozen=True)
class Flags:
    """Train a TopK SAE and two vSAEs on the embedded language model, compare and show them."""

    save_dir: str = "runs/quickstart"
    """Where the three run folders go."""
    steps: int = 1000
    """Training steps."""
    eval_tokens: int = 100_000
    """Held-out tokens in the evaluation."""
    seed: int = 0
    """Seeds all three alike."""
    report: bool = True
    """Write report.html on what the three learned."""


def run(flags: Flags) -> None:
    from ..evaluation.folders import table
    from ..run_folder.reading import read_metrics
    from ..training.loop import train

    config = RunConfig(
        save_dir=flags.save_dir, steps=flags.steps, eval_tokens=flags.eval_tokens, overwrite=True
    )
    saes = quickstart(flags.steps, flags.seed)
    print(
        "Training on blocks.0.hook_resid_post of the embedded language model, all from one buffer:\n"
        "  top_k                    a TopK SAE\n"
        "  vsae_paper               the vSAE of the paper's equations: sigma 1, noise on everything\n"
        "  vsae_annealed_selection  a vSAE whose noise only explores which features win, and ends"
    )
    folders = train(config, saes)
    print("\nOn held-out text:\n")
    print(table({str(folder): read_metrics(folder) for folder in folders.values()}))
    one = folders["vsae_annealed_selection"]
    if flags.report:
        print("\nLooking at what they learned:")
        path = _report(flags, one, [folder for folder in folders.values() if folder != one])
        print(f"\nOpen {path} in a browser: their features, maps and training, on one page.")
    print(
        f"\nEach folder in {flags.save_dir} holds ae.pt, config.json, metrics.jsonl, metrics.json.\n"
        "FVE: fraction of variance explained. CE recovered: of the language model's loss.\n"
        "near-dead: share of features selected less than 0.1 or 0.5 times as often as on average.\n"
        "\nNext:\n"
        f"  vsae train --config {one} --noise-on values --save-dir runs/values\n"
        f"  vsae compare {one} runs/values\n"
        "  vsae train --help"
    )


def _report(flags: Flags, folder: Path, against: list[Path]) -> Path:
    from ..report import write_report
    from ..report.analysis import ReportOptions
    from ..run_folder.names import REPORT

    # A short run is looked at briefly too.
    options = ReportOptions(tokens=max(1, flags.eval_tokens), seed=flags.seed)
    return write_report(
        folder,
        against,
        Path(flags.save_dir) / REPORT,
        options=options,
        on_step=lambda step: print(f"  {step} …", flush=True),
    )
