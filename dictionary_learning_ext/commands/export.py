"""`vsae export` and `vsae push`: write SAEs for other libraries, and upload them to the Hugging Face hub."""

from dataclasses import dataclass, field
from pathlib import Path

from ..config.architectures import COMPARED_TOKENS, ExportFormat, PushFormat
from ..errors import CheckpointError, UserError, as_flag, in_shell
from .flags import FOLDER, Command, positional, vsae
from .measure import StoredFlags


@dataclass(frozen=True)
class ExportFlags:
    """Write an SAE in a format that another library reads."""

    folder: str = field(metadata=positional(FOLDER))
    """A run folder, or a folder of run folders, each of which is exported."""
    format: ExportFormat
    """sae-bench: a working directory for SAE Bench's own dictionary_learning runner.
    dictionary-learning: for upstream's load_dictionary. sae-lens: for SAE.load_from_disk, and
    so for SAEDashboard. sparsify: for EleutherAI's SparseCoder.load_many, and so for delphi.
    circuit-tracer: for its load_transcoder_set, transcoders of all layers."""
    out: str | None = None
    """A new or empty folder. The exports of a folder of run folders get a folder each in it, except for
    circuit-tracer, which reads all layers in one. Default: FOLDER/exports/FORMAT, and
    results/NAME/exports/FORMAT for a folder of trainSAE."""
    allow_inexact: bool = False
    """Export an SAE even if the format cannot represent it exactly. Other libraries' TopK has a
    ReLU, which sets negative activations to 0."""
    tokens: int = COMPARED_TOKENS
    """Held-out tokens on which the export is compared with the SAE."""
    inputs: StoredFlags = field(default_factory=StoredFlags)


def run_export(flags: ExportFlags) -> None:
    from ..run_folder.reading import run_folders_in
    from ..run_folder.sae_folder import find_run

    inside = run_folders_in(flags.folder)
    if not inside:
        find_run(flags.folder, "export")  # before torch is imported
    from ..export.exporter import export
    from ..export.formats import FORMATS, join_layers

    are_layers = flags.format == "circuit-tracer" and bool(inside)
    layers: list[Path] = []
    refused = 0
    for folder in inside or [Path(flags.folder)]:
        name = folder.name if inside else ""
        out = None if flags.out is None or are_layers else Path(flags.out, name)
        try:
            exported = export(
                folder,
                flags.format,
                out,
                allow_inexact=flags.allow_inexact,
                tokens=flags.tokens,
                **vars(flags.inputs),
            )
        except UserError as error:
            if not inside:
                raise
            print(f"not exported: {error}")
            refused += 1
        else:
            print(f"{exported.folder}: {exported.difference}")
            layers.append(exported.folder)
            if are_layers:
                continue
            wanted, name = FORMATS[flags.format], folder.resolve().name
            upload = in_shell(exported.folder / wanted.inside.format(name=name, module=""))
            places = {"folder": str(exported.folder), "name": name, "upload": upload}
            print(wanted.usage.format(**places, vsae=vsae()))
    if refused:
        raise CheckpointError(
            f"{flags.folder}: {refused} of {len(inside)} SAEs were not exported as {flags.format}; the "
            "reasons are above"
        )
    if are_layers:
        out = Path(flags.out or Path(flags.folder, "exports", flags.format))
        join_layers(layers, out)
        print(
            f"{out}: {len(layers)} layers, for load_transcoder_set of circuit-tracer (docs/exports.md)"
        )


@dataclass(frozen=True)
class PushFlags:
    """Upload SAEs to the Hugging Face hub, with a model card."""

    folder: str = field(metadata=positional(FOLDER))
    """A run folder, an export for dictionary-learning or SAE Bench, or a folder of such folders."""
    repo: str = field(metadata=positional("OWNER/NAME"))
    """A repo on the hub. It is created if it does not exist."""
    public: bool = False
    """Create the repo as public. Default: private."""
    format: tuple[PushFormat, ...] = ()
    """Also add what these libraries read, for SAE.from_pretrained of SAELens and
    SparseCoder.load_from_hub. The SAEs are exported again, so the language model is needed."""
    allow_inexact: bool = False
    """With --format: see export."""
    tokens: int = COMPARED_TOKENS
    """With --format: held-out tokens on which each export is compared with its SAE."""
    dry_run: bool = False
    """Only list the files that would be uploaded, and print the model card."""
    inputs: StoredFlags = field(default_factory=StoredFlags)


def run_push(flags: PushFlags) -> None:
    from ..export.hub import push

    options = {"allow_inexact": flags.allow_inexact, "tokens": flags.tokens, **vars(flags.inputs)}
    defaults = {"allow_inexact": False, "tokens": COMPARED_TOKENS, **vars(StoredFlags())}
    for name, value in options.items():
        if value != defaults[name] and not flags.format:
            raise UserError(f"{as_flag(name)}: only works with --format")
    pushed = push(
        flags.folder,
        flags.repo,
        formats=flags.format,
        public=flags.public,
        dry_run=flags.dry_run,
        **options,
    )
    for name, size in pushed.files.items():
        print(f"{size:>12,} {name}")
    for (_, form), error in pushed.left_out.items():
        print(f"not as {form}: {error}")
    for name in pushed.unfinished:
        print(f"not uploaded: {name}, whose run is not finished")
    if pushed.url is None:
        where = f"{'public' if flags.public else 'private'} repository: {pushed.repo}"
        print(
            f"\n{pushed.card}\nNothing was uploaded. Without --dry-run, the files go to a {where}"
        )
    else:
        print(f"uploaded to {pushed.url} ({'private' if pushed.is_private else 'public'})")


EXPORT = Command(
    "export",
    ExportFlags,
    run_export,
    examples=(
        "vsae export runs/a --format sae-lens",
        "vsae export runs/a --format sae-bench --out export",
    ),
)
PUSH = Command(
    "push",
    PushFlags,
    run_push,
    examples=(
        "vsae push runs/a OWNER/NAME --dry-run",
        "vsae push runs OWNER/NAME --format sae-lens sparsify --public",
    ),
)
