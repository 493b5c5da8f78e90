"""The command line: parses, calls, prints. Decides nothing."""

import logging
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tyro

from .config import RunConfig, TrainConfig, load_config
from .errors import UserError
from .presets import preset, quickstart
from .sae_config import SAEConfig

_BOOLEANS = ("--overwrite", "--remove-bos", "--rectify")
T = TypeVar("T")


@dataclass(frozen=True)
class TrainFlags:
    """Train one SAE on a language model's activations, save it and evaluate it."""

    sae: SAEConfig = field(default_factory=SAEConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preset: str | None = None
    """Start from named settings: quickstart, paper or paper-as-run. Other flags win over it."""
    config: Path | None = None
    """Start from the settings of a run: its folder or config.json. Other flags win over it."""


@dataclass(frozen=True)
class EvalFlags:
    """Evaluate run folders on held-out text and write their metrics.json."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """One or more run folders, trained on one language model and hook point."""
    tokens: int = 100_000
    """Held-out tokens to measure on."""
    model: str | None = None
    """The language model, if config.json does not say it."""
    hook: str | None = None
    """The hook point, if config.json does not say it."""
    data: str | None = None
    """Another text to evaluate on."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class CompareFlags:
    """Print the evaluations of run folders side by side."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Two or more run folders."""


@dataclass(frozen=True)
class QuickstartFlags:
    """Train a TopK SAE and two vSAEs on the embedded language model, and compare them."""

    save_dir: str = "runs/quickstart"
    """Where the three run folders go."""
    steps: int = 1000
    """Training steps."""
    eval_tokens: int = 100_000
    """Held-out tokens in the evaluation."""
    seed: int = 0
    """Seeds all three alike."""


def train_command(args: list[str]) -> None:
    flags = _parse(TrainFlags, args, "train", default=_starting_point(args))
    from .comparison import read_metrics, table
    from .training import train

    folders = train(flags.run, {"sae": flags.sae})
    if flags.run.eval_tokens:
        print(table({str(folder): read_metrics(folder) for folder in folders.values()}))
    for folder in folders.values():
        print(f"saved in {folder}; load it with load_dictionary({str(folder)!r})")


def eval_command(args: list[str]) -> None:
    flags = _parse(EvalFlags, args, "eval")
    from .comparison import evaluate_folders, table

    options = {name: value for name, value in vars(flags).items() if name != "folders"}
    print(table(evaluate_folders(flags.folders, **options)))


def compare_command(args: list[str]) -> None:
    flags = _parse(CompareFlags, args, "compare")
    from .comparison import differences, read_all, table

    results = read_all(flags.folders)
    print(table(results))
    if names := differences(results):
        print(f"These were measured on different {', '.join(names)}: not a matched comparison.")


def quickstart_command(args: list[str]) -> None:
    flags = _parse(QuickstartFlags, args, "quickstart")
    from .comparison import read_metrics, table
    from .training import train

    run = RunConfig(
        save_dir=flags.save_dir, steps=flags.steps, eval_tokens=flags.eval_tokens, overwrite=True
    )
    saes = quickstart(flags.steps, flags.seed)
    print(
        "Training on blocks.0.hook_resid_post of the embedded language model, all from one buffer:\n"
        "  top_k                    a TopK SAE\n"
        "  vsae_paper               the vSAE of the paper's equations: sigma 1, noise on everything\n"
        "  vsae_annealed_selection  a vSAE whose noise only explores which features win, and ends"
    )
    folders = train(run, saes)
    print("\nOn held-out text:\n")
    print(table({str(folder): read_metrics(folder) for folder in folders.values()}))
    one = folders["vsae_annealed_selection"]
    print(
        f"\nEach folder in {flags.save_dir} holds ae.pt, config.json, metrics.jsonl, metrics.json.\n"
        "FVE: fraction of variance explained. CE recovered: of the language model's loss.\n"
        "near-dead: share of features selected less than 0.1 or 0.5 times as often as on average.\n"
        "\nNext:\n"
        f"  vsae train --config {one} --noise-on values --save-dir runs/values\n"
        f"  vsae compare {one} runs/values\n"
        "  vsae train --help"
    )


COMMANDS: dict[str, tuple[Callable[[list[str]], None], type]] = {
    "train": (train_command, TrainFlags),
    "eval": (eval_command, EvalFlags),
    "compare": (compare_command, CompareFlags),
    "quickstart": (quickstart_command, QuickstartFlags),
}


def _usage() -> str:
    lines = ["usage: vsae COMMAND [FLAGS]", "", "Variational TopK sparse autoencoders.", ""]
    lines += [f"  {name:<12}{flags.__doc__}" for name, (_, flags) in COMMANDS.items()]
    return "\n".join([*lines, "", "`vsae COMMAND --help` explains every flag."])


def _starting_point(args: list[str]) -> TrainFlags:
    """The defaults of --preset or --config, as far as --architecture and --posterior use them."""
    pattern = r"(?:^|\n)--(preset|config|architecture|posterior)(?:=|\n)([^\n]+)"
    given = dict(re.findall(pattern, "\n".join(args)))
    if "preset" in given and "config" in given:
        raise UserError("--preset and --config: give one of them; other flags win over either")
    start = TrainConfig()
    if "preset" in given:
        start = preset(given["preset"])
    elif "config" in given:
        start = load_config(given["config"])
    sae = start.sae.changed_to(given.get("architecture"), given.get("posterior"))
    return TrainFlags(sae, start.run)


def _parse(flags: type[T], args: list[str], command: str, default: Any = tyro.MISSING_NONPROP) -> T:
    """Parse flags; a mistake becomes a UserError of one line."""
    spelled: list[str] = []
    for arg, following in pairwise([*args, ""]):
        spelled.append(arg)
        if arg.replace("_", "-") in _BOOLEANS and following not in ("True", "False", "None"):
            spelled.append("True")
    message = StringIO()
    try:
        with redirect_stderr(message):
            return tyro.cli(
                flags,
                args=spelled,
                prog=f"vsae {command}",
                default=default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", message.getvalue())  # tyro draws a box
        text = re.sub(r"(Argument helptext:|For full helptext).*", "", " ".join(text.split()))
        raise UserError(f"{text.strip()} (see `vsae {command} --help`)") from stop


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 for a mistake in what was given."""
    args = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if args[0] not in COMMANDS:
            raise UserError(f"{args[0]!r}: no such command; expected {', '.join(COMMANDS)}")
        COMMANDS[args[0]][0](args[1:])
    except UserError as error:
        print(f"vsae: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `vsae train --help | head`
        sys.stdout = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
