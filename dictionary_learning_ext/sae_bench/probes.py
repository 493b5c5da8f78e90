"""k-sparse probing on the data sets of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681).

SAE Bench's own code runs it, as sparse_probing_sae_probes. SAE Bench loads the language model by its name on the hub unless
the activations are in its cache, so they are written there first.

sae-probes is imported by functions, because that takes seconds. The names of the data sets need no import of SAE Bench.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.checks import close_names
from ..errors import BenchError, first_line

if TYPE_CHECKING:
    from sae_bench.custom_saes.base_sae import BaseSAE
    from transformer_lens import HookedTransformer

    from .settings import BenchSettings

ALL = "all"
SMALLEST = "smallest"
MOST_CHARACTERS = 100_000
"""The most characters of all texts of a small data set together."""
SMALLEST_SETS = (
    "119_us_state_TX",
    "118_us_state_CA",
    "117_us_state_FL",
    "156_athlete_sport_baseball",
    "154_athlete_sport_football",
    "155_athlete_sport_basketball",
    "125_world_country_Italy",
    "123_world_country_United_Kingdom",
    "124_world_country_United_States",
    "120_us_timezone_Chicago",
    "131_temp_cat_Typical Time",
    "122_us_timezone_Los_Angeles",
    "121_us_timezone_New_York",
    "130_temp_cat_Frequency",
    "132_temp_cat_Event Ordering",
    "114_nyc_borough_Manhattan",
    "115_nyc_borough_Brooklyn",
    "116_nyc_borough_Bronx",
    "127_art_type_song",
    "128_art_type_movie",
    "134_context_type_Belief_states",
    "133_context_type_Causality",
    "126_art_type_book",
    "135_context_type_Event_duration",
    "129_arith_mc_A",
    "24_headline_isiran",
    "6_hist_fig_isamerican",
    "41_truthqa_tf",
    "7_hist_fig_ispolitician",
    "22_headline_isobama",
)
"""The 30 of sae-probes's 113 data sets whose texts have at most MOST_CHARACTERS together, smallest first. They have 64,000 of
its 334,000 texts."""

MAX_TOKENS = 1024  # of a text, from its end; sae-probes's
_LISTING = "python -c 'from sae_probes import DATASETS; print(*DATASETS)'"


def chosen_sets(asked: str) -> list[str]:
    """The names of the data sets in `--probing-sets`: smallest, all, or names separated by commas.

    Raises: BenchError for a name that sae-probes does not have.
    """
    if asked == SMALLEST:
        return list(SMALLEST_SETS)
    from sae_probes import DATASETS  # pyright: ignore[reportMissingImports]

    if asked == ALL:
        return list(DATASETS)
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    for name in names or [asked]:
        if name not in DATASETS:
            close = close_names(name, DATASETS) or DATASETS[:3]
            raise BenchError(
                f"sae-probes has no data set {name!r}",
                name="probing_sets",
                value=asked,
                expected=f"{SMALLEST}, {ALL}, or names separated by commas, e.g. {', '.join(close)}",
                instead=f"`{_LISTING}` lists all",
            )
    return names


def run_sae_probes(sae: "BaseSAE", name: str, config: Any, settings: "BenchSettings") -> Any:
    """Probes on the 1, 2 and 5 features that differ most between the classes, on each data set.

    Raises: BenchError if the tokenizer can't be used, or the disk is too small for the activations.
    """
    from sae_bench.evals.sparse_probing_sae_probes.main import run_eval

    activations = settings.cache / "activations"
    with _sae_probes_tokenizer(settings.model):
        _write_activations(config.dataset_names, sae, activations, settings)
    names = hashlib.sha256(" ".join(config.dataset_names).encode()).hexdigest()[:8]
    results = settings.cache / f"seed_{config.random_seed}_sets_{names}"
    shutil.rmtree(results / f"{name}_custom_sae", ignore_errors=True)  # may be another SAE's
    folders = {"results_path": str(results), "model_cache_path": str(activations)}
    (output,) = run_eval(
        replace(config, **folders),
        [(name, sae)],  # pyright: ignore[reportArgumentType]
        settings.device,
        str(results / "output"),
        force_rerun=True,
    ).values()
    done = {detail["dataset_name"] for detail in output["eval_result_details"]}
    if missing := set(config.dataset_names) - done:
        raise BenchError(f"sae-probes wrote no result of {', '.join(sorted(missing))}")
    mine = {
        "eval_config": asdict(config),
        "eval_result_unstructured": {"max_tokens": _max_tokens(settings)},
    }
    return output | mine


@contextmanager
def _sae_probes_tokenizer(model: "HookedTransformer") -> Iterator[None]:
    """After the block, undo sae-probes's changes of the tokenizer, which other evaluations use.

    Raises: BenchError if sae-probes can't use the tokenizer.
    """
    tokenizer: Any = model.tokenizer
    former = {side: getattr(tokenizer, side) for side in ("truncation_side", "padding_side")}
    try:
        tokenizer(["one", "one more"], padding=True, truncation=True, max_length=8)
    except (ValueError, TypeError) as error:
        raise BenchError(
            f"sae-probes can't use the tokenizer of {model.cfg.model_name} ({first_line(error)}): it "
            "pads texts to one length; set the tokenizer's pad_token, e.g. to its eos_token, and save "
            "it beside the model"
        ) from error
    try:
        yield
    finally:
        for side, value in former.items():
            setattr(tokenizer, side, value)


def _write_activations(
    names: list[str], sae: "BaseSAE", folder: Path, settings: "BenchSettings"
) -> None:
    """Write the language model's activations of the data sets that the folder lacks. A file is whole or not there."""
    from sae_probes.generate_model_activations import ensure_dataset_activations

    hook, kept = sae.cfg.hook_name, folder / f"model_activations_{settings.name}"
    missing = [name for name in names if not (kept / f"{name}_{hook}.pt").is_file()]
    kept.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    for name in missing:
        ensure_dataset_activations(
            settings.name,
            [name],
            [hook],
            partial,
            device=settings.device,
            max_seq_len=_max_tokens(settings),
            batch_size=settings.batch_size,
            model=settings.model,
        )
        (written,) = partial.glob(f"*/{name}_{hook}.pt")
        written.replace(kept / written.name)


def _max_tokens(settings: "BenchSettings") -> int:
    return min(MAX_TOKENS, settings.model.cfg.n_ctx)
