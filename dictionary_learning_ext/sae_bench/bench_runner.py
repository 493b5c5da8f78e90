"""SAE Bench's evaluations over run folders: what `vsae bench` does."""

import hashlib
import json
import logging
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch as t
from nnsight import LanguageModel
from pydantic import TypeAdapter, ValidationError
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.sae_bench_utils.general_utils import get_results_filepath, load_and_format_sae
from tqdm import tqdm

from ..activations.language_models import HookPoint, weights_hash
from ..activations.run_inputs import open_model
from ..config.options import require
from ..config.run_config import RunConfig
from ..errors import BenchError, UserError
from ..run_folder.names import BENCH_CACHE, BENCH_RESULTS
from ..run_folder.reading import run_of
from ..run_folder.writing import write_json, writing
from . import adapter
from . import feature_usage as usage
from .bench_data import in_folder, open_bench_data
from .bench_settings import Bench, capped_n_values, configure, seed_everything
from .evaluations import EVALUATIONS, OUTPUTS
from .lens_model import hooked_transformer

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, Any]]]
"""By SAE's label and evaluation: what stands in SAE Bench's JSON."""


@dataclass(frozen=True)
class Job:
    """One SAE to evaluate: its label in tables and files, and the folder its results go to."""

    label: str
    folder: Path
    sae: BaseSAE


@dataclass
class Outcome:
    """What came out.

    Attributes:
        results: what could be had, by label and evaluation.
        matched: the size-matched controls, by the label of the SAE that was masked.
        failures: the SAEs' labels, by evaluation and cause.
    """

    results: Results = field(default_factory=dict)
    matched: dict[str, str] = field(default_factory=dict)
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def failure_lines(self) -> list[str]:
        """One line for each evaluation and cause."""
        return [
            f"{evaluation} of {', '.join(labels)}: {cause}"
            for (evaluation, cause), labels in self.failures.items()
        ]

    def check(self) -> None:
        """Raise a BenchError if an evaluation failed."""
        if self.failures:
            raise BenchError(
                f"failed: {'; '.join(self.failure_lines())} (what succeeded is kept, and the next "
                "call runs the rest)"
            )


def bench(
    folders: Sequence[str | Path],
    *,
    evals: Sequence[str] = tuple(EVALUATIONS),
    model: str | None = None,
    hook: str | None = None,
    data: str | None = None,
    device: str = "cpu",
    tokens: int = 100_000,
    train_size: int | None = None,
    test_size: int | None = None,
    again: bool = False,
    floor: bool = False,
    size_matched: bool = False,
) -> Outcome:
    """Evaluate run folders in SAE Bench, on the language model that their SAEs were trained on.

    Every SAE is loaded before the first evaluation. A result is written to
    FOLDER/eval_results/EVALUATION/ in SAE Bench's schema when it is there, and is not made again
    unless the SAE, the model or the settings changed. A failure does not stop the others.

    Arguments:
        folders: run folders, or names of hub repos (their results go to runs/OWNER_NAME).
        evals: names in EVALUATIONS.
        model, hook: those of the run's config.json unless given.
        data: "embedded", "hub" or a folder, see `open_bench_data`; embedded for the embedded
            model and hub for others unless given.
        tokens: what core measures on.
        train_size, test_size: texts in the probes' sets.
        again: repeat what is finished.
        floor: evaluate a random and an identity SAE too, with results in the first folder.
        size_matched: SCR and TPP also for each SAE masked to its N most used features, N being
            the number that the SAE with the fewest uses. Needs core.

    Raises: a UserError before anything runs; failures of evaluations are in the outcome.
    """
    require(len(folders) > 0, "folders", (), "one run folder or more, as runs/NAME")
    for name in evals:
        require(name in EVALUATIONS, "evals", name, "some of " + ",".join(EVALUATIONS))
    if size_matched and "core" not in evals:
        raise BenchError("the size-matched control needs core: how often features are used")
    paths = {str(folder): adapter.local_folder(folder) for folder in folders}
    run = _shared_run(paths, model, hook, device)
    adapter.register()
    language_model, hook_point = open_model(run)
    jobs = _load(paths, run, hook_point)
    hooked = hooked_transformer(language_model, hook_point, Path(run.model).name)
    trained: Any = [job.sae for job in jobs]
    smallest = min(sae.cfg.d_sae for sae in trained)
    n_values = capped_n_values(smallest) if {"scr", "tpp"} & set(evals) else ()
    if floor:
        first = jobs[0].folder
        random = adapter.random_sae(trained[0])
        jobs.append(Job(f"random_F{random.cfg.d_sae}", first, random))
        jobs.append(Job("identity", first, adapter.identity_sae(trained[0])))
    cache = jobs[0].folder / BENCH_CACHE
    name = data or ("embedded" if run.model == "embedded" else "hub")
    with writing(cache):
        sets = open_bench_data(name, cache)
    shared = Bench(
        hooked,
        sets,
        cache,
        n_values,
        tokens=tokens,
        ctx_len=min(run.ctx_len, hooked.cfg.n_ctx),
        train_size=train_size,
        test_size=test_size,
    )
    one_run = _Run(shared, _model_key(language_model, hook_point), again)
    one_run.all(jobs, evals)
    if size_matched:
        controls = _controls(jobs[: len(paths)], one_run.outcome)
        one_run.all(list(controls.values()), [name for name in evals if name in ("scr", "tpp")])
        one_run.outcome.matched = {label: job.label for label, job in controls.items()}
    if not one_run.outcome.failures:
        shutil.rmtree(cache, ignore_errors=True)
    return one_run.outcome


class _Run:
    """Runs jobs one after the other and gathers what comes out."""

    def __init__(self, shared: Bench, model_key: str, again: bool):
        self.shared, self.model_key, self.again = shared, model_key, again
        self.outcome = Outcome()

    def all(self, jobs: Sequence[Job], evals: Sequence[str]) -> None:
        """Every evaluation of every SAE."""
        with tqdm(total=len(jobs) * len(evals), unit="evaluation", file=sys.stderr) as bar:
            for evaluation in evals:
                for job in jobs:
                    bar.set_postfix_str(f"{evaluation} of {job.label}")
                    self._one(job, evaluation)
                    bar.update()

    def _one(self, job: Job, evaluation: str) -> None:
        folder = job.folder / BENCH_RESULTS / evaluation
        path = Path(get_results_filepath(str(folder), job.label, "custom_sae"))
        log = folder / f"{job.label}.log"
        try:
            config = configure(evaluation, self.shared)
            if "n_values" in asdict(config):  # the identity SAE has D features
                config.n_values = [n for n in config.n_values if n <= job.sae.cfg.d_sae]
            key = _digest(self.model_key, asdict(config), _sae_key(job.sae))
            found = None if self.again else finished(path, evaluation, key)
            if found is None:
                started = time.perf_counter()
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                found = self._evaluate(job, evaluation, config, log)
                found["eval_result_unstructured"] |= {
                    "vsae_bench_key": key,
                    "wall_seconds": round(time.perf_counter() - started, 1),
                }
                write_json(path, found)
                log.unlink(missing_ok=True)
            self.outcome.results.setdefault(job.label, {})[evaluation] = found
        except Exception as error:  # SAE Bench's code can raise anything; the others still run
            if isinstance(error, UserError):
                cause = str(error)
                log.unlink(missing_ok=True)
            else:
                cause = _cause(error) + (f" (see {log})" if log.exists() else "")
            self.outcome.failures.setdefault((evaluation, cause), []).append(job.label)

    def _evaluate(self, job: Job, evaluation: str, config: Any, log: Path) -> dict[str, Any]:
        """The JSON of a fresh evaluation, validated. What SAE Bench prints goes to the log."""
        sizes = {name: v for name, v in asdict(config).items() if name != "n_values"}
        cache = self.shared.cache / f"{evaluation}_{_digest(self.model_key, sizes)}"
        bench = replace(self.shared, cache=cache)
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                cache.mkdir(parents=True, exist_ok=True)
                load_and_format_sae(job.label, job.sae, bench.device)  # pyright: ignore
                with in_folder(bench.data, bench.cache.parent), t.enable_grad():
                    seed_everything()
                    output = EVALUATIONS[evaluation](job.sae, job.label, config, bench)
            except UserError:
                raise
            except BaseException:
                traceback.print_exc()
                shutil.rmtree(cache, ignore_errors=True)  # may hold half a file
                raise
        found = json.loads(output.to_json())
        TypeAdapter(OUTPUTS[evaluation]).validate_python(found)
        return found


def finished(path: Path, evaluation: str, key: str | None = None) -> dict[str, Any] | None:
    """A result file's content, if it is whole, in SAE Bench's schema, and of `key`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        TypeAdapter(OUTPUTS[evaluation]).validate_python(found)
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        logger.warning("%s is not whole (%s): made again", path, type(error).__name__)
        return None
    if key is not None and found["eval_result_unstructured"].get("vsae_bench_key") != key:
        logger.warning("%s is of another SAE, model or settings: made again", path)
        return None
    return found


def _shared_run(
    paths: dict[str, Path], model: str | None, hook: str | None, device: str
) -> RunConfig:
    """The one run of all folders, with the model in float32."""
    runs = {name: run_of(path, model, hook, None, device) for name, path in paths.items()}
    first_name, first = next(iter(runs.items()))
    for name, run in runs.items():
        for what in ("model", "hook"):
            if getattr(run, what) != getattr(first, what):
                raise BenchError(
                    f"{name}: trained on {what} {getattr(run, what)}, but {first_name} on "
                    f"{getattr(first, what)}; bench them in two calls"
                )
    return replace(first, dtype="float32")


def _load(paths: dict[str, Path], run: RunConfig, hook: HookPoint) -> list[Job]:
    """Every SAE, labelled by its folder's name, or by its path where two have one name."""
    names = [path.name for path in paths.values()]
    jobs = []
    for given, path in paths.items():
        is_alone = names.count(path.name) == 1
        label = path.name if is_alone else "_".join(path.parts[-2:])
        sae = adapter.load_bench_sae(
            path,
            model_name=Path(run.model).name,
            hook_name=hook.name,
            hook_layer=hook.layer,
            device=run.device,
        )
        if sae.cfg.d_in != hook.activation_dim:
            raise BenchError(
                f"{given}: activation_dim={sae.cfg.d_in}, but {hook.name} of {run.model} is "
                f"{hook.activation_dim} wide; give the --model it was trained on"
            )
        jobs.append(Job(label, path, sae))
    return jobs


def _controls(jobs: list[Job], outcome: Outcome) -> dict[str, Job]:
    """The SAEs masked to as many of their most used features as the one that uses fewest."""
    selected: dict[str, list[int]] = {}
    for job in jobs:
        if core := outcome.results.get(job.label, {}).get("core"):
            selected[job.label] = core["eval_result_unstructured"]["selected"]
    if not selected:
        return {}
    n = min(usage.in_use(counts) for counts in selected.values())
    controls = {}
    for job in jobs:
        if job.label in selected and usage.in_use(selected[job.label]) > n:
            sae: Any = job.sae
            kept_F = usage.most_used(selected[job.label], n)
            label = f"{job.label}_top{n}"
            controls[job.label] = Job(label, job.folder, adapter.masked(sae, kept_F))
    return controls


def _model_key(model: LanguageModel, hook: HookPoint) -> str:
    return f"{weights_hash(model)} {hook.name}"


def _sae_key(sae: BaseSAE) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
