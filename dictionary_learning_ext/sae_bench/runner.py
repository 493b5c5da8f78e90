"""`vsae bench`: runs SAE Bench's evaluations on run folders, and writes the results."""

import contextlib
import hashlib
import json
import logging
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.sae_bench_utils.general_utils import get_results_filepath

from ..activations.hook_points import HookPoint
from ..activations.inputs import open_model
from ..activations.positions import PositionRule
from ..config.architectures import BENCHED, BenchEvaluation
from ..config.checks import require, require_choice
from ..config.run import RunConfig
from ..devices import chosen_device
from ..errors import BenchError, CheckpointError, UserError, first_line
from ..evaluation.metrics import shown_in
from ..evaluation.tables import endings_of
from ..progress import progress
from ..run_folder.files import (
    BENCH_CACHE,
    BENCH_RESULTS,
    LOCK,
    locked,
    read_json,
    remove,
    target_of,
    write_json,
    writing,
)
from ..run_folder.identity import LEAVING_OUT, PLACE, require_alike
from ..run_folder.sae_folder import SAEFolder, find_saes, require_own
from ..run_folder.tensors import hash_of
from ..run_folder.trained_on import trained_on
from . import adapter
from .data import find_bench_data, write_core_text
from .evaluations import RESULT, evaluate
from .lens_model import hooked_transformer
from .probes import SMALLEST, chosen_sets
from .results import BenchResults
from .settings import LEAST_TEXTS, BenchSettings, configure

logger = logging.getLogger(__name__)

_BESIDE_THE_SAE = "disk for this folder"
"""What to change if results can't be written, for the error's message."""
_KEY = "vsae_bench_key"
"""A result's hash of everything that it depends on, in its "eval_result_unstructured"."""


def bench(
    folders: Sequence[str | Path | SAEFolder],
    *,
    evals: Sequence[BenchEvaluation] = BENCHED,
    data: str | None = None,
    device: str = RunConfig.device,
    tokens: int = RunConfig.eval_tokens,
    train_size: int | None = None,
    test_size: int | None = None,
    probing_sets: str = SMALLEST,
    again: bool = False,
    extra: Mapping[str, BaseSAE] | None = None,
    **where: Any,
) -> BenchResults:
    """Evaluate run folders in SAE Bench, on the language model that their SAEs were trained on.

    All SAEs are loaded before the first evaluation. Each result is written to FOLDER/eval_results/EVALUATION/ in SAE Bench's
    schema as soon as it is there. An evaluation is repeated only if the SAE, the model or the settings have changed. If one
    fails, the others still run.

    Arguments:
        folders: run folders, or OWNER/REPOSITORY/FOLDER on the hub. For where results go, see `SAEFolder.results`.
        data: "embedded", "hub", a folder of data sets, or a text for core, see `find_bench_data`.
        tokens: how many core measures on.
        train_size, test_size: the numbers of texts in the probes' sets.
        probing_sets: the data sets of sae_probes, see `chosen_sets`.
        again: repeat finished evaluations, e.g. where a data set has changed.
        extra: further SAEs by label, e.g. changed copies of an SAE from `load_bench_sae`. Their results go to the first
            folder, so each label must be a valid file name that no other SAE has.
        where: model, hook, max_norm_multiple and remove_bos. Default: as in training.

    Raises: a UserError for a mistake, before anything runs. Evaluations that fail are listed in `failures`.
    """
    for name in evals or [""]:
        require_choice("evals", name, BenchEvaluation)
    require(tokens > 0, "tokens", tokens, "above 0")
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        require(size is None or size >= LEAST_TEXTS, name, size, f"at least {LEAST_TEXTS}")
    with_probes = "sae_probes in evals, which reads them"
    is_read = probing_sets == SMALLEST or "sae_probes" in evals
    require(is_read, "probing_sets", probing_sets, with_probes)
    sets = chosen_sets(probing_sets) if "sae_probes" in evals else []
    saes = find_saes(folders)
    for sae in saes.values():
        require_own(sae, "bench")
    where["device"] = chosen_device(device)
    runs = {name: trained_on(sae, **where) for name, sae in saes.items()}
    names = ("model", *PLACE, *LEAVING_OUT)
    require_alike(
        {n: {one: getattr(run, one) for one in names} for n, run in runs.items()}, BenchError
    )
    if next(iter(runs.values())).target is not None:
        raise BenchError(f"{', '.join(runs)}: SAE Bench takes SAEs, and no transcoders")
    run = replace(next(iter(runs.values())), dtype="float32")
    texts = find_bench_data(data, run, evals)
    adapter.register()
    language_model, hook_point = open_model(run)
    jobs = _load(saes, run, hook_point)
    hooked = hooked_transformer(language_model, hook_point, Path(run.model).name)
    first = jobs[0].folder.absolute()
    jobs += [BenchJob(label, label, first, sae) for label, sae in (extra or {}).items()]
    cache = first / BENCH_CACHE
    # Of two processes, the second would take the first's cache for what a kill has left.
    with locked(cache, "first folder"):
        with writing(cache, _BESIDE_THE_SAE):
            _clear(cache)  # a kill may have left half a file
            if texts.text is not None:
                write_core_text(texts.text, cache, 2 * tokens)
        settings = BenchSettings(
            hooked,
            PositionRule.of(run, hooked.tokenizer),
            texts,
            cache,
            tuple(sets),
            tokens,
            min(run.ctx_len, hooked.cfg.n_ctx),
            train_size,
            test_size,
        )
        rule = settings.rule.settings
        measured_on = [hash_of(language_model.module), hook_point.name, *texts.identity, rule]
        outcome = _evaluate_all(evals, jobs, settings, measured_on, again)
        with contextlib.suppress(OSError):
            _clear(cache)
    return outcome


def _evaluate_all(
    evals: Sequence[BenchEvaluation],
    jobs: Sequence["BenchJob"],
    settings: BenchSettings,
    measured_on: list[Any],
    again: bool,
) -> BenchResults:
    """Run each evaluation of each SAE, or take its result from the disk.

    Arguments:
        measured_on: identifies the activations that the SAEs are measured on.
    """
    outcome = BenchResults()
    configs = [[configure(name, settings, job.sae) for job in jobs] for name in evals]
    with progress(len(evals) * len(jobs), "evaluation") as bar:
        for evaluation, of_jobs in zip(evals, configs, strict=True):
            ours = [m.definition for m in shown_in("bench")] if evaluation == "core" else []
            for job, config in zip(jobs, of_jobs, strict=True):
                bar.set_postfix_str(f"{evaluation} of {job.label}")
                decides = [*measured_on, asdict(config), ours, hash_of(job.sae)]
                text = json.dumps(decides, sort_keys=True, default=str)
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                try:
                    result = _result(evaluation, job, config, settings, key, again)
                    outcome.results.setdefault(job.label, {})[evaluation] = result
                except UserError as error:
                    outcome.failures.setdefault((evaluation, str(error)), []).append(job.label)
                bar.update()
            shutil.rmtree(settings.cache / evaluation, ignore_errors=True)
    return outcome


def _clear(cache: Path) -> None:
    """Remove all files of a cache except its lock."""
    for path in cache.iterdir():
        if path.name != LOCK:
            remove(path)


@dataclass(frozen=True)
class BenchJob:
    """One SAE to evaluate.

    Attributes:
        label: its name in tables, which no other SAE has.
        name: the name of its result files in `folder`. It does not depend on the other SAEs.
    """

    label: str
    name: str
    folder: Path
    sae: BaseSAE


def _load(saes: dict[str, SAEFolder], settings: RunConfig, hook: HookPoint) -> list[BenchJob]:
    """Load every SAE. Labels are as short as tells them from each other."""
    places = {
        name: Path(name) if one.is_on_hub else target_of(one.path) for name, one in saes.items()
    }
    labels = endings_of(map(str, places.values()))
    jobs = []
    for name, found in saes.items():
        place = places[name]
        sae = adapter.load_bench_sae(
            found,
            model_name=Path(settings.model).name,
            hook_name=hook.name,
            hook_layer=hook.layer,
            device=settings.device,
        )
        hook.require_width(name, sae.cfg.d_in, settings.model)
        results = found.results if found.is_on_hub else place
        jobs.append(BenchJob(labels[str(place)], place.name, results, sae))
    return jobs


def _result(
    evaluation: BenchEvaluation,
    job: BenchJob,
    config: Any,
    settings: BenchSettings,
    key: str,
    again: bool,
) -> dict[str, Any]:
    """The result on disk if it still holds, otherwise a new one, which is written.

    What SAE Bench prints goes to a log, which stays if its code fails.

    Raises: a UserError if it fails.
    """
    folder = job.folder / BENCH_RESULTS / evaluation
    path = Path(get_results_filepath(str(folder), job.name, "custom_sae"))
    log = folder / f"{job.name}.log"
    if not again and (there := finished(path, key)):
        return there
    with writing(folder, _BESIDE_THE_SAE):
        folder.mkdir(parents=True, exist_ok=True)
        file = log.open("w", encoding="utf-8")
    with file, redirect_stdout(file), redirect_stderr(file):
        try:
            result = evaluate(evaluation, job.sae, job.name, config, settings)
        except UserError:
            log.unlink()
            raise
        except Exception as error:  # SAE Bench's code can raise anything; the others still run
            traceback.print_exc()
            shutil.rmtree(settings.cache / evaluation, ignore_errors=True)  # may hold half a file
            cause = f"{type(error).__name__}: {first_line(error)[:300]} (see {log})"
            raise BenchError(cause) from error
    own = result["eval_result_unstructured"] or {}
    result["eval_result_unstructured"] = own | {_KEY: key}
    write_json(path, result, _BESIDE_THE_SAE)
    log.unlink()
    return result


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a result file; None if it is missing or damaged, or if it has another key.

    SAE Bench skips what has a file of this name: also half a file, and that of another SAE or other settings.
    """
    try:
        result = read_json(path, RESULT, "it will be replaced")
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        logger.warning("%s", error)
        return None
    if (result.get("eval_result_unstructured") or {}).get(_KEY) == key:
        return result
    logger.warning("%s belongs to another SAE, model or settings and will be replaced", path)
    return None
