"""`vsae quickstart`: the first command a newcomer runs."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..config.presets import preset, quickstart
from ..config.run import ReportOptions, RunConfig, TrainConfig, require_same
from ..config.sae import SAEConfig
from ..errors import Interrupted, in_shell
from ..run_folder.files import CONFIG, INDEX, REPORT, remove, report_files
from ..run_folder.reading import is_finished, load_config, read_metrics
from .flags import Command, vsae


@dataclass(frozen=True)
class QuickstartFlags:
    """Train a TopK SAE and two vSAEs, compare them and write a report."""

    save_dir: str = "runs/quickstart"
    """The folder for the three run folders and the report."""
    steps: int = 1000
    """Training steps of each SAE."""
    eval_tokens: int = RunConfig.eval_tokens
    """Held-out tokens to evaluate on. 0: no evaluation."""
    seed: int = 0
    """Seeds the initial weights and the noise of all three SAEs."""
    report: bool = True
    """Write report.html, which shows what the three SAEs learned."""
    overwrite: bool = False
    """Train again and replace the SAEs in save_dir."""


def run(flags: QuickstartFlags) -> None:
    from ..evaluation.tables import printed
    from ..training.loop import train

    config = replace(
        preset("quickstart").run,
        save_dir=flags.save_dir,
        steps=flags.steps,
        eval_tokens=flags.eval_tokens,
        overwrite=flags.overwrite,
    )
    saes = quickstart(flags.steps, flags.seed)
    folders = {name: Path(flags.save_dir) / name for name in saes}
    page = Path(flags.save_dir) / REPORT
    has_started = not flags.overwrite and _has_started(config, saes, folders)
    if has_started and all(is_finished(folder, config) for folder in folders.values()):
        print(f"{flags.save_dir} holds these SAEs already; --overwrite trains them again.")
    else:
        print(_INTRODUCTION)
        for of_former_saes in (page, report_files(page), page.with_name(INDEX)):
            remove(of_former_saes)
        try:
            train(config, saes, resume=has_started)
        except Interrupted as stop:
            message = f"stopped by {stop.signal.name}; run the same command again to continue"
            raise Interrupted(stop.signal, message) from stop
    if flags.eval_tokens:
        print("\nOn held-out text:\n")
        print(printed({str(folder): read_metrics(folder) for folder in folders.values()}))
    one = folders["vsae_annealed_selection"]
    if flags.report:
        if not page.is_file():
            from ..report.page import write_report

            print("\nWriting the report:")
            write_report(
                one,
                [folder for folder in folders.values() if folder != one],
                page,
                options=ReportOptions(  # a short run gets a short report
                    tokens=flags.eval_tokens or ReportOptions.tokens, seed=flags.seed
                ),
                on_step=lambda step: print(f"  {step} …", flush=True),
            )
        print(f"\nOpen {page} in a browser to see their features, maps and training.")
    print(
        f"\nEach folder in {flags.save_dir} holds ae.pt, config.json, metrics.jsonl and metrics.json.\n"
        "\nNext:\n"
        f"  {vsae()} train --config {in_shell(one)} --noise-on values --save-dir runs/values\n"
        f"  {vsae()} compare {in_shell(one)} runs/values\n"
        f"  {vsae()} train --help"
    )


_INTRODUCTION = """\
Training three SAEs on blocks.0.hook_resid_post of the embedded language model,
all on the same batches:
  top_k                    a TopK SAE
  vsae_paper               the vSAE of the paper's equations: sigma = 1, noise on both
  vsae_annealed_selection  a vSAE with noise on the selection only, annealed to 0"""


def _has_started(config: RunConfig, saes: dict[str, SAEConfig], folders: dict[str, Path]) -> bool:
    """Whether an earlier quickstart with these flags wrote to the folders.

    Raises: ConfigError if one of them holds another run.
    """
    started = [name for name, folder in folders.items() if (folder / CONFIG).is_file()]
    for name in started:
        was = load_config(folders[name]).to_dict()
        sae = saes[name].resolve(config.steps, config.batch_size)
        advice = "overwrite it with --overwrite, or choose another --save-dir"
        now = TrainConfig(sae, config).to_dict()
        require_same(was, now, str(folders[name]), advice=advice)
    return bool(started)


QUICKSTART = Command("quickstart", QuickstartFlags, run)
