"""`vsae bench`: runs SAE Bench's evaluations on run folders, and writes the results."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch as t
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.sae_bench_utils.general_utils import get_results_filepath, load_and_format_sae
from threadpoolctl import threadpool_limits

from ..activations.hook_points import HookPoint
from ..activations.inputs import open_model
from ..config.architectures import BENCHED, BenchEvaluation
from ..config.checks import require, require_choice
from ..config.run import RunConfig
from ..devices import chosen_device
from ..errors import BenchError, CheckpointError, UserError, first_line
from ..evaluation.metrics import shown_in
from ..evaluation.tables import endings_of
from ..progress import progress
from ..run_folder.comparing import LEAVING_OUT, require_one_setting
from ..run_folder.files import (
    BENCH_CACHE,
    BENCH_REPEATS,
    BENCH_RESULTS,
    LOCK,
    locked,
    read_json,
    remove,
    target_of,
    write_json,
    writing,
)
from ..run_folder.reading import require_folders
from ..run_folder.sae_names import location_of, require_own, results_folder
from ..run_folder.schema import Object
from ..run_folder.tensors import hash_of
from ..run_folder.trained_on import run_of
from . import adapter
from .adapter import FLOOR_LOOKS
from .data import in_folder, local_files, open_bench_data
from .evaluations import EVALUATIONS, NOT_REPEATED
from .lens_model import accepted, hooked_transformer
from .probes import SMALLEST, chosen_sets
from .results import BenchResults
from .settings import (
    LEAST_TEXTS,
    SEED,
    BenchSettings,
    capped_n_values,
    configure,
    seed_everything,
)

logger = logging.getLogger(__name__)

_ELSEWHERE = "disk for this folder"
"""What to change if results can't be written, for the error's message: they lie beside the SAE."""
_KEPT_CACHE = "sae_probes"
"""The evaluation whose cache serves all seeds and has no incomplete file after a kill, see probes.py. The cache is kept until all
evaluations have succeeded."""


def bench(
    folders: Sequence[str | Path],
    *,
    evals: Sequence[BenchEvaluation] = BENCHED,
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = RunConfig.device,
    max_norm_multiple: float | None = None,
    remove_bos: bool | None = None,
    tokens: int = RunConfig.eval_tokens,
    train_size: int | None = None,
    test_size: int | None = None,
    probing_sets: str = SMALLEST,
    bench_seeds: int = 1,
    again: bool = False,
    floor: bool = False,
    extra: Mapping[str, BaseSAE] | None = None,
) -> BenchResults:
    """Evaluate run folders in SAE Bench, on the language model that their SAEs were trained on.

    All SAEs are loaded before the first evaluation. Each result is written to FOLDER/eval_results/EVALUATION/ in SAE Bench's
    schema as soon as it is there. An evaluation is repeated only if the SAE, the model or the settings have changed. If one
    fails, the others still run.

    Arguments:
        folders: run folders, or OWNER/REPOSITORY/FOLDER on the hub. For where results go, see `results_folder`.
        model, hook, max_norm_multiple, remove_bos: default: as in training.
        data: "embedded", "hub" or a folder, see `open_bench_data`. Default: embedded for the
            embedded model, and hub for others.
        tokens: how many core measures on.
        train_size, test_size: the numbers of texts in the probes' sets.
        probing_sets: the data sets of sae_probes, see `chosen_sets`.
        bench_seeds: how often each evaluation runs: with SAE Bench's seed, and with the numbers after it.
        floor: also evaluate `reference_saes`. Their results go to the first folder.
        extra: further SAEs by label, e.g. changed copies of an SAE from `load_bench_sae`. Their results go to the first
            folder, so each label must be a valid file name that no other SAE has.

    Raises: a UserError for a mistake, before anything runs. Evaluations that fail are listed in `failures`.
    """
    require_folders(folders)
    _require_sensible(evals, tokens, bench_seeds, train_size, test_size, probing_sets)
    sets = chosen_sets(probing_sets) if "sae_probes" in evals else []
    paths = {str(folder): target_of(location_of(folder).folder) for folder in folders}
    for path in paths.values():
        require_own(path, "bench")
    device = chosen_device(device)
    left_out: Any = {"max_norm_multiple": max_norm_multiple, "remove_bos": remove_bos}
    runs = {
        name: run_of(path, model, hook, None, device, **left_out) for name, path in paths.items()
    }
    require_one_setting(runs, ("model", "hook", *LEAVING_OUT), BenchError)
    run = replace(next(iter(runs.values())), dtype="float32")
    adapter.register()
    language_model, hook_point = open_model(run)
    jobs = _load(paths, run, hook_point, FLOOR_LOOKS if floor else ())
    hooked = hooked_transformer(language_model, hook_point, Path(run.model).name)
    first: Any = jobs[0]
    smallest = min(job.sae.cfg.d_sae for job in jobs)
    n_values = capped_n_values(smallest) if {"scr", "tpp"} & set(evals) else ()
    further = {**(adapter.reference_saes(first.sae) if floor else {}), **(extra or {})}
    jobs += [BenchJob(label, label, first.folder, sae) for label, sae in further.items()]
    cache = first.folder / BENCH_CACHE
    name = data or ("embedded" if run.model == "embedded" else "hub")
    # Of two processes, the second would take the first's cache for what a kill has left.
    with locked(cache, "first folder"):
        with writing(cache, _ELSEWHERE):
            _clear(cache, but=_KEPT_CACHE)  # a kill may have left half a file
            texts = open_bench_data(name, cache)
        settings = BenchSettings(
            hooked,
            texts,
            cache,
            n_values,
            probing_sets=tuple(sets),
            tokens=tokens,
            ctx_len=min(run.ctx_len, hooked.cfg.n_ctx),
            train_size=train_size,
            test_size=test_size,
            remove_bos=run.remove_bos,
            max_norm_multiple=run.max_norm_multiple,
        )
        for evaluation in evals:
            configure(evaluation, settings)  # raises where a data set is missing
        # Identifies the activations that the SAEs are measured on. By the weights, as results of before are.
        model_key = f"{hash_of(language_model.module)} {hook_point.name}"
        runner = _BenchRun(settings, model_key, again)
        runner.all(jobs, evals, range(SEED, SEED + bench_seeds))
        if not runner.outcome.failures:
            with contextlib.suppress(OSError):
                _clear(cache)
    return runner.outcome


def _require_sensible(
    evals: Sequence[BenchEvaluation],
    tokens: int,
    bench_seeds: int,
    train_size: int | None,
    test_size: int | None,
    probing_sets: str,
) -> None:
    """Raise a UserError for an unknown evaluation, or a number that is not possible."""
    for name in evals or [""]:
        require_choice("evals", name, BenchEvaluation)
    require(tokens > 0, "tokens", tokens, "above 0")
    require(bench_seeds >= 1, "bench_seeds", bench_seeds, "at least 1")
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        require(size is None or size >= LEAST_TEXTS, name, size, f"at least {LEAST_TEXTS}")
    if probing_sets != SMALLEST and "sae_probes" not in evals:
        raise BenchError(
            name="probing_sets",
            value=probing_sets,
            expected="sae_probes in evals, which reads them",
        )


def _clear(cache: Path, but: str | None = None) -> None:
    """Remove all files of a cache except its lock, and except those of one evaluation."""
    for path in cache.iterdir():
        is_kept = but is not None and path.name.startswith(but)
        if path.name != LOCK and not is_kept:
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


def _load(
    paths: dict[str, Path], settings: RunConfig, hook: HookPoint, taken: Collection[str]
) -> list[BenchJob]:
    """Load every SAE. Labels are as short as tells them from each other and from those `taken`."""
    is_here = {given: Path(given).is_dir() for given in paths}
    places = {given: path if is_here[given] else Path(given) for given, path in paths.items()}
    labels = endings_of([*map(str, places.values()), *taken])
    jobs = []
    for given, path in paths.items():
        place = places[given]
        # The first folder holds the results of the floors too.
        name = "_".join(place.parts[-2:]) if place.name in FLOOR_LOOKS else place.name
        results = path if is_here[given] else results_folder(given)
        sae = adapter.load_bench_sae(
            path,
            model_name=Path(settings.model).name,
            hook_name=hook.name,
            hook_layer=hook.layer,
            device=settings.device,
        )
        hook.require_width(given, sae.cfg.d_in, settings.model)
        jobs.append(BenchJob(labels[str(place)], name, results, sae))
    return jobs


class _BenchRun:
    """Runs jobs one after the other and collects their results."""

    def __init__(self, settings: BenchSettings, model_key: str, again: bool):
        self.settings, self.model_key, self.again = settings, model_key, again
        self.outcome = BenchResults()

    def all(self, jobs: Sequence[BenchJob], evals: Sequence[BenchEvaluation], seeds: range) -> None:
        """Run every evaluation of every SAE with every seed. Those in NOT_REPEATED run with one."""
        todo: list[tuple[int, BenchEvaluation]] = [
            (seed, evaluation)
            for seed in seeds
            for evaluation in evals
            if seed == SEED or evaluation not in NOT_REPEATED
        ]
        with progress(len(todo) * len(jobs), "evaluation") as bar:
            for seed, evaluation in todo:
                cache = self.settings.cache / f"{evaluation}_{digest(self.model_key)}"
                settings = replace(self.settings, seed=seed, cache=cache)
                shown = "" if len(seeds) == 1 else f", seed {seed}"
                try:
                    for job in jobs:
                        bar.set_postfix_str(f"{evaluation} of {job.label}{shown}")
                        self._one(job, evaluation, settings)
                        bar.update()
                finally:
                    if evaluation != _KEPT_CACHE:  # nothing else takes the same texts
                        shutil.rmtree(cache, ignore_errors=True)

    def _one(self, job: BenchJob, evaluation: BenchEvaluation, settings: BenchSettings) -> None:
        """Collect a result: the one on disk if it still holds, otherwise a new one, which is written."""
        folder = job.folder / BENCH_RESULTS / evaluation
        if settings.seed != SEED:  # SAE Bench's own tools read all that is in eval_results
            folder = job.folder / BENCH_REPEATS / str(settings.seed) / evaluation
        path = Path(get_results_filepath(str(folder), job.name, "custom_sae"))
        log = folder / f"{job.name}.log"
        try:
            config = configure(evaluation, settings)
            if "n_values" in asdict(config):  # the identity SAE has D features
                config.n_values = [n for n in config.n_values if n <= job.sae.cfg.d_sae]
            key = result_key(evaluation, config, settings, self.model_key, job.sae)
            found = None if self.again else finished(path, key)
            if found is None:
                started = time.perf_counter()
                with writing(folder, _ELSEWHERE):
                    folder.mkdir(parents=True, exist_ok=True)
                found = self._evaluate(job, evaluation, config, settings, log)
                found["eval_result_unstructured"] = (found["eval_result_unstructured"] or {}) | {
                    "vsae_bench_key": key,
                    "wall_seconds": round(time.perf_counter() - started, 1),
                }
                write_json(path, found, _ELSEWHERE)
                log.unlink(missing_ok=True)
            outcome, seed = self.outcome, settings.seed
            results = outcome.results if seed == SEED else outcome.repeats.setdefault(seed, {})
            results.setdefault(job.label, {})[evaluation] = found
        except Exception as error:  # SAE Bench's code can raise anything; the others still run
            if isinstance(error, UserError):
                cause = str(error)
                log.unlink(missing_ok=True)
            else:
                cause = f"{type(error).__name__}: {first_line(error)[:300]}"
                cause += f" (see {log})" if log.exists() else ""
            label = job.label if settings.seed == SEED else f"{job.label} (seed {settings.seed})"
            self.outcome.failures.setdefault((evaluation, cause), []).append(label)

    def _evaluate(
        self,
        job: BenchJob,
        evaluation: BenchEvaluation,
        config: Any,
        settings: BenchSettings,
        log: Path,
    ) -> dict[str, Any]:
        """Run an evaluation and return its result as JSON content. What SAE Bench prints goes to the log."""
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                settings.cache.mkdir(parents=True, exist_ok=True)
                load_and_format_sae(job.name, job.sae, settings.device)  # pyright: ignore
                with (
                    in_folder(settings.data, self.settings.cache),
                    accepted(settings.model),
                    # SAE Bench fits many small probes, which a second thread only slows down.
                    threadpool_limits(1, user_api="blas"),
                    t.enable_grad(),
                ):
                    seed_everything(settings.seed)
                    output = EVALUATIONS[evaluation](job.sae, job.name, config, settings)
            except UserError:
                raise
            except Exception:
                traceback.print_exc()
                shutil.rmtree(settings.cache, ignore_errors=True)  # may hold half a file
                raise
        return json.loads(json.dumps(output, default=str))


_RESULT_JSON = Object({"eval_result_unstructured": Object(or_null=True)})
"""A result file of SAE Bench."""


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """The content of a result file; None if it is missing or damaged, or if its "vsae_bench_key" is not `key`."""
    try:
        found = read_json(path, _RESULT_JSON, "it will be replaced")
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        logger.warning("%s", error)
        return None
    if (found.get("eval_result_unstructured") or {}).get("vsae_bench_key") != key:
        logger.warning("%s belongs to another SAE, model or settings and will be replaced", path)
        return None
    return found


def result_key(
    evaluation: BenchEvaluation, config: Any, settings: BenchSettings, model: str, sae: BaseSAE
) -> str:
    """A hash of everything that a result depends on.

    Arguments:
        config: SAE Bench's.
        model: a key of the language model and the hook point.
    """
    weights = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    parts = [model, asdict(config), weights.hexdigest()]
    if evaluation == "core":  # it holds our metrics: made again where one was redefined
        parts.append([metric.definition for metric in shown_in("bench")])
        if settings.remove_bos or settings.max_norm_multiple is not None:
            parts.append([settings.remove_bos, settings.max_norm_multiple])
        if settings.seed != SEED:
            parts.append(settings.seed)
    return digest(*parts, *local_files(settings.data, config))


def digest(*parts: Any) -> str:
    """A short hash of JSON content, the same in every process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
