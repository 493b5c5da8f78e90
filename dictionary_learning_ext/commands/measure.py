"""`vsae eval`, `vsae compare` and `vsae reproduce`: metrics of SAEs, side by side, and across seeds.

Each takes any SAE that can be named, see run_folder/sae_names.py. Each finds them before it imports torch, which takes seconds.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.checks import require
from ..config.run import RunConfig
from .flags import FOLDERS, Command, positional

if TYPE_CHECKING:
    from ..run_folder.sae_folder import SAEFolder

_LARGEST = 10
"""Features in the table of a single SAE."""


@dataclass(frozen=True)
class InputFlags:
    """The activations to measure on: flags of every command that runs SAEs."""

    model: str | None = None
    """The language model. Default: as in the SAE's files. Required if they don't name one."""
    hook: str | None = None
    """The hook point. Default: as in the SAE's files. Required if they don't name one."""
    data: str | None = None
    """The text. Default: as in the SAE's files."""
    max_norm_multiple: float | None = None
    """Leave out tokens whose norm is over this many times the median. Default: as in training, or 10 if it
    kept all tokens."""
    remove_bos: bool | None = None
    """Leave out beginning-of-text tokens. Default: as in training."""
    device: str = RunConfig.device
    """Where to compute: auto (CUDA if torch can use it, otherwise the CPU), cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class StoredFlags(InputFlags):
    """The activations to measure on, which may be stored."""

    activations: str | None = None
    """Read activations from this folder, see `vsae train --help-all`. Default: as in config.json. none:
    from the language model."""


@dataclass(frozen=True)
class MeasuredFlags(StoredFlags):
    """The same, with how they are read, and what is kept of them."""

    text_column: str | None = None
    """The column of the text that holds the documents. Default: as in the SAE's files."""
    device_map: str | None = None
    """Spread the language model over several devices, see `vsae train --help-all`."""
    no_keep: bool = False
    """Don't keep an SAE's codes of held-out text (which features fire at each token) in codes/ beside it, and don't use
    those that are kept there. The next command has to encode the text again."""

    @property
    def given(self) -> dict[str, Any]:
        """The flags as arguments of the Python functions."""
        flags = dict(vars(self))
        return flags | {"keep": not flags.pop("no_keep")}


@dataclass(frozen=True)
class EvalFlags:
    """Evaluate SAEs on held-out text and write metrics.json."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Run folders, or other libraries' SAEs (see docs/any_sae.md), all trained on one language model."""
    out: str | None = None
    """Write to OUT/NAME/metrics.json instead, where other commands don't find it. Default: the run folder, and
    results/NAME for another library's SAE."""
    tokens: int | None = None
    """Held-out tokens to evaluate on. Default: as in the run's own evaluation. If the settings differ from those of
    metrics.json, the results go to evaluations/ instead."""
    step: int | None = None
    """Evaluate the checkpoint of this step, see --save-steps of train. Default: the final
    weights."""
    all: bool = False
    """Print every metric. All of them are in metrics.json."""
    inputs: MeasuredFlags = field(default_factory=MeasuredFlags)


def run_eval(flags: EvalFlags) -> None:
    from ..run_folder.sae_folder import find_saes

    written, saes = [], find_saes(flags.folders, flags.step)
    from ..evaluation.folders import evaluate_folders
    from ..evaluation.tables import metrics_in, results_table

    results = evaluate_folders(
        [*saes.values()],
        out=flags.out,
        tokens=flags.tokens,
        step=flags.step,
        on_written=written.append,
        **flags.inputs.given,
    )
    print(results_table(results, saes, metrics_in(results) if flags.all else None))
    for path in written:
        print(f"wrote {path}")


@dataclass(frozen=True)
class CompareFlags:
    """Print the metrics of SAEs side by side."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Run folders, folders that hold them, or other libraries' SAEs, which `vsae eval` has measured: two or more, or one to see
    its metrics."""
    columns: str | None = None
    """The metrics to show, by their keys in metrics.json, e.g. fve,l0,loss_reconstructed. Default:
    the most important ones, and which features come back where there are several seeds of a setting."""
    all: bool = False
    """Show every metric (see docs/metrics.md)."""
    json: bool = False
    """Print JSON instead: each folder's metrics.json. With --columns, only those metrics and what
    they were measured on. "stale" says why metrics may not be what `vsae eval` would give now."""


def run_compare(flags: CompareFlags) -> None:
    from ..run_folder.sae_folder import find_saes, saes_in

    saes = find_saes(saes_in(flags.folders))
    results = {name: sae.required_metrics for name, sae in saes.items()}
    from ..evaluation.tables import chosen, metrics_in, results_table, stale_metrics, titles
    from ..features.agreement import COME_BACK
    from ..features.reproduce_text import sentence_of
    from ..features.seeds import compare_seeds

    reasons = stale_metrics(results, saes)
    metrics = None if flags.columns is None else chosen(flags.columns)
    if flags.all:
        require(metrics is None, "columns", flags.columns, "to be left out beside --all")
        metrics = metrics_in(results)
    if flags.json:
        if metrics is not None:
            keys = {metric.key for metric in metrics} | {"measured_on", "tokens", "loss_tokens"}
            for folder, values in results.items():
                results[folder] = {key: value for key, value in values.items() if key in keys}
        for folder, reason in reasons.items():
            results[folder] |= {"stale": f"measured {reason}"}
        print(json.dumps(results, indent=2))
        return
    if flags.columns is not None:
        print(results_table(results, saes, metrics))
        return
    groups, columns = [*compare_seeds(saes)], {measure.label: {} for measure in COME_BACK}
    for folders, returning in groups:
        shares = returning.numbers()
        for measure in COME_BACK:
            if (share := shares[measure.key]) is not None:
                columns[measure.label] |= dict.fromkeys(folders, measure.text(share))
    print(results_table(results, saes, metrics, columns))
    if groups:
        called = titles({names[0]: saes[names[0]] for names, _ in groups})
        print(f"\n{sentence_of({called[names[0]]: returning for names, returning in groups})}")


@dataclass(frozen=True)
class ReproduceFlags:
    """Measure which features come back with another seed, or in any SAE."""

    folders: tuple[str, ...] = field(metadata=positional(FOLDERS))
    """Run folders, folders that hold them, e.g. of `vsae train --seeds`, or other libraries' SAEs (see
    docs/any_sae.md). Those that differ only in --seed and --data-seed are compared, with a row for each setting. Two that differ in more
    are compared with a warning. One: rank its features by error_share, and write them to its features.csv."""
    tokens: int | None = None
    """Held-out tokens to compare the features' activations on. Default: as in the runs' own evaluations. 0: compare
    decoder directions alone, which needs no language model."""
    csv: str | None = None
    """A CSV file to write, with a row for each feature of each SAE: its matches in the other SAEs, whether it comes back, and
    its error_share. With one folder, it is written instead of features.csv."""
    all: bool = False
    """Print every measure."""
    json: bool = False
    """Print JSON instead."""
    inputs: MeasuredFlags = field(default_factory=MeasuredFlags)


def run_reproduce(flags: ReproduceFlags) -> None:
    from ..run_folder.files import require_writable
    from ..run_folder.sae_folder import saes_in

    saes = saes_in(flags.folders)
    if len(saes) == 1:
        _order(flags, saes[0])
        return
    if flags.csv is not None:
        require_writable(Path(flags.csv), "csv")
    from ..features.reproduce import reproduce_settings
    from ..features.reproduce_text import json_content, reproducibility_table, write_features

    results, notes = reproduce_settings(saes, flags.tokens, **flags.inputs.given)
    if flags.csv is not None:
        write_features(results.values(), flags.csv)
    if flags.json:
        print(json.dumps(json_content(results, notes), indent=2))
    else:
        print(reproducibility_table(results, flags.all))
    if flags.csv is not None and not flags.json:
        print(f"\nwrote {flags.csv}")


def _order(flags: ReproduceFlags, sae: "SAEFolder") -> None:
    """Order the features of a single SAE by their error_share."""
    from ..run_folder.files import FEATURES, require_writable

    require(flags.tokens != 0, "tokens", flags.tokens, "above 0 for one folder")
    path = sae.results / FEATURES if flags.csv is None else Path(flags.csv)
    require_writable(path, "csv")
    from ..evaluation.folders import open_folders
    from ..evaluation.tables import text_table
    from ..features.columns import FeaturesOfSAE, write_numbers

    (codes,) = open_folders([sae], **flags.inputs.given).codes(flags.tokens).values()
    write_numbers(path, [("", FeaturesOfSAE(codes))], "one")
    share_F, rate_F = codes.error_share_F.tolist(), codes.firing_rate_F.tolist()
    if flags.json:
        print(json.dumps({"tokens": codes.tokens, "error_share": share_F}, indent=2))
        return
    first = sorted(range(codes.n_features), key=lambda i: -share_F[i])[:_LARGEST]
    rows = [[str(i), f"{share_F[i]:.2%}", f"{rate_F[i]:.2%}"] for i in first]
    print(
        f"{text_table(['feature', 'error_share', 'firing rate'], rows)}\n\n"
        f"The {len(first)} largest of {codes.n_features:,} features, on {codes.tokens:,} held-out tokens. error_share: how\n"
        "much the squared error rises when the feature is dropped, as a share of that error.\n"
        "Features with a large one come back more often when the same settings are trained\n"
        f"again.\n\nwrote {path}"
    )


EVAL = Command(
    "eval",
    EvalFlags,
    run_eval,
    examples=(
        "vsae eval runs/quickstart/vsae_seed0 --tokens 50000",
        "vsae eval OWNER/REPOSITORY/FOLDER --model gpt2 --data my.txt",
    ),
)
COMPARE = Command(
    "compare",
    CompareFlags,
    run_compare,
    examples=(
        "vsae compare runs/quickstart/top_k_seed0 runs/quickstart/vsae_seed0",
        "vsae compare runs/a runs/b --columns fve,l0,loss_added",
    ),
)
REPRODUCE = Command(
    "reproduce",
    ReproduceFlags,
    run_reproduce,
    examples=(
        "vsae reproduce runs/quickstart/vsae_seed0 runs/quickstart/vsae_seed1",
        "vsae reproduce runs/a runs/b --csv features.csv --tokens 50000",
    ),
)
