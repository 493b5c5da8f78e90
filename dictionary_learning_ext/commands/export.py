"""`vsae export`: an SAE for other libraries."""

from dataclasses import dataclass

import tyro

from ..config.options import ExportFormat


@dataclass(frozen=True)
class Flags:
    """Write an SAE as a folder that SAE Bench, dictionary_learning or SAELens reads."""

    folder: tyro.conf.Positional[str]
    """A run folder."""
    format: ExportFormat
    """sae-bench: a working directory for SAE Bench's own dictionary_learning runner.
    dictionary-learning: upstream's load_dictionary. sae-lens: SAE.load_from_disk, the way to
    SAEDashboard and Neuronpedia. safetensors: plain weights, and a config with the equation."""
    out: str | None = None
    """A new folder; FOLDER/exports/FORMAT unless told."""
    allow_inexact: bool = False
    """Export also an SAE that the format can't hold exactly (negative activations: these readers
    but safetensors apply a ReLU)."""
    tokens: int = 10_000
    """Held-out tokens on which the export is compared with the SAE."""
    model: str | None = None
    """The language model, if config.json does not say it."""
    hook: str | None = None
    """The hook point, if config.json does not say it."""
    data: str | None = None
    """Another text to compare on."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


def run(flags: Flags) -> None:
    from ..export.exporter import export
    from ..export.formats import SAE_BENCH_REPO
    from ..run_folder.names import WEIGHTS

    options = {n: v for n, v in vars(flags).items() if n not in ("folder", "format")}
    exported = export(flags.folder, flags.format, **options)
    out = exported.folder
    print(f"{out}: {exported.difference}")
    if exported.cut_paths:
        print(f"Local paths were cut to their last names: {', '.join(exported.cut_paths)}")
    if flags.format == "sae-bench":
        (place,) = (path.parent for path in out.glob(f"downloaded_saes/*/{WEIGHTS}"))
        print(
            f"In {out}, SAE Bench's run_all_evals_dictionary_learning_saes reads it as\n"
            f"  load_dictionary_learning_sae({SAE_BENCH_REPO!r}, {place.name!r}, MODEL, …)\n"
            f"To have it on the hub: vsae push {place} OWNER/NAME"
        )
    elif flags.format == "sae-lens":
        print(f"  SAE.load_from_disk({str(out)!r})")
    elif flags.format == "dictionary-learning":
        print(f"  dictionary_learning.utils.load_dictionary({str(out)!r}, device)")
    else:
        print("config.json states the equation, and the shapes in sae.safetensors")
