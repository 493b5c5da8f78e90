"""What `same_numbers` runs with the package of each commit.

Each case is a function that writes its results to a folder of its name in the current folder. It reads
the files that `write_inputs` made in `../inputs`. All paths are relative, so those in the results are
equal too. To resume, a case continues the runs that it finds instead of starting them.

Commits may differ in their modules. So cases use the package's public names and command lines. Only
`argv` needs a place inside, `training.loop.train`. Settings are given flat: SAEConfig(k=8, ...).

What a case writes to a folder `scratch` is not compared.
"""

import importlib
import io
import json
import logging
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch as t
from safetensors.torch import save_file

STEPS, HALF = 60, 30
SHARED: dict[str, Any] = {"dict_size": 256, "lr": 1e-3, "dead_feature_threshold": 4096}
OF_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vsae_top_k": {"k": 16},
    "vsae": {"sigma": 0.2},
    "top_k": {"k": 16, "dead_feature_threshold": 4096},
    "batch_top_k": {"k": 16},
    "matryoshka": {"k": 16},
    "relu": {},
    "jump_relu": {},
    "vaease": {},
    "probabilistic_top_k": {"k": 16},
}
"""Settings of an SAE of each architecture."""
KINDS: dict[str, dict[str, Any]] = {
    "fixed, noise on both": {"k": 16},
    "fixed, noise on values": {"k": 16, "noise_on": "values", "sigma": 0.3},
    "fixed, noise on selection": {
        "k": 16,
        "noise_on": "selection",
        "sigma": 0.3,
        "noise_anneal_steps": 40,
        "kl_scope": "selected",
        "beta": 0.1,
    },
    "fixed, rectified": {"k": 64, "rectify": True, "sigma": 0.2, "kl_schedule": "cosine"},
    "fixed, by magnitude": {"k": 16, "select_by": "magnitude", "sigma": 0.3},
    "fixed, k annealed": {"k": 16, "k_anneal_steps": 40},
    "fixed, frozen decoder": {"k": 16, "freeze_decoder": True},
    "learned": {"k": 16, "posterior": "learned", "log_var_init": -3.0, "beta": 0.3},
    "learned, noise on values": {
        "k": 16,
        "posterior": "learned",
        "noise_on": "values",
        "kl_scope": "selected",
    },
    "point": {"k": 16, "posterior": "point", "beta": 0.1},
    "point, upstream's TopK": {"k": 16, "posterior": "point", "rectify": True, "beta": 0.0},
}
"""Settings of vSAEs beyond those that they share."""
RUNS: list[tuple[str, int, Any]] = [
    ("seed0", 0, "float32"),
    ("seed1", 1, "float32"),
    ("bf16", 0, "bfloat16"),
]
EARLY, LATE = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
DROPPING = ("--max-norm-multiple", "1.2")
"""Leaves out a quarter of the tokens at EARLY, a tenth at LATE."""
SMALL = (
    "--steps 20 --batch-size 256 --n-ctxs 16 --dict-size 128 --k 8 --eval-tokens 2048 "
    "--eval-documents 4 --save-every 10"
)
"""Flags of a run that is resumed at step 10, in the middle of the buffer's second fill."""
INPUTS = Path("../inputs")
DELETED = ("free_bits", "kl_cycle_steps", "prior", "learns_prior", "noise_stream")
"""Names that are gone, and that earlier commits write at the value that does nothing; the last two in
resume points."""


def settings() -> dict[str, dict[str, Any]]:
    """The settings of each SAE of the case `architectures`, by its folder's name."""
    found = {
        name: {"architecture": name, "dict_size": 256} | own
        for name, own in OF_ARCHITECTURES.items()
    }
    return found | {f"vsae_{i}": SHARED | own for i, own in enumerate(KINDS.values())}


def write_inputs(folder: Path) -> None:
    """Texts and activations that are not the package's."""
    from datasets import Array2D, Dataset, Features, Sequence, Value

    draw = random.Random(0)
    words = shlex.split("the a of and to in it was he she had not with for on sea house old day")

    def document(length: int) -> str:
        return " ".join(draw.choice(words) for _ in range(length)).capitalize() + "."

    folder.mkdir()
    lines = [json.dumps({"text": document(draw.randint(20, 300))}) for _ in range(400)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    (folder / "text").mkdir()
    for name, documents in {"train": 24, "validation": 24}.items():
        text = "<|endoftext|>".join(document(draw.randint(100, 200)) for _ in range(documents))
        (folder / "text" / f"{name}.txt").write_text(text)

    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((42_000, 32)) * np.linspace(0.5, 2, 32)).astype(np.float32)
    for name in ("own", "own_bf16"):
        (folder / name).mkdir()
    for i, part in enumerate(np.split(rows, [4000])):
        np.save(folder / "own" / f"{i}.npy", part)
        tensors = {"rows": t.from_numpy(part).bfloat16()}
        save_file(tensors, folder / "own_bf16" / f"{i}.safetensors")

    contexts, length, width = 330, 128, 32
    columns: dict[str, Any] = {
        hook: generator.standard_normal((contexts, length, width)).astype(np.float32)
        for hook in (EARLY, LATE)
    }
    kinds: dict[str, Any] = {hook: Array2D((length, width), "float32") for hook in columns}
    columns["token_ids"] = np.arange(contexts * length).reshape(contexts, length) % 4000
    kinds["token_ids"] = Sequence(Value("int32"), length=length)
    data = Dataset.from_dict(columns, Features(kinds))
    data.save_to_disk(str(folder / "sae_lens"), num_shards=2)


class Refused(RuntimeError):
    """A command ended with an error."""


def vsae(*words: object) -> str:
    """What a command prints. Raises Refused unless it succeeds."""
    from dictionary_learning_ext.cli import main

    args = [str(word) for word in words]
    printed, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(errors):
        code = main(args)
    if code:
        raise Refused(f"vsae {shlex.join(args)} exited with {code}: {errors.getvalue()}")
    return printed.getvalue()


def vsae_train(folder: Path, resume: bool, *flags: object) -> None:
    """Train with the flags SMALL and others, or continue that run."""
    if resume:
        vsae("train", "--resume", folder)
    else:
        vsae("train", *SMALL.split(), *flags, "--save-dir", folder)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, default=str))


def architectures(out: Path, resume: bool) -> None:
    """Every architecture, and a vSAE of every kind."""
    from dictionary_learning_ext import RunConfig, SAEConfig, train

    for name, seed, dtype in RUNS:
        run = RunConfig(
            steps=STEPS,
            batch_size=512,
            n_ctxs=64,
            dtype=dtype,
            eval_tokens=4096,
            eval_documents=8,
            log_steps=15,
            save_every=str(HALF),
            save_dir=str(out / name),
        )
        saes = {sae: SAEConfig(seed=seed, **own) for sae, own in settings().items()}
        train(run, saes, resume=resume)


def hooks(out: Path, resume: bool) -> None:
    """Several hook points in one pass, which drop different tokens."""
    from dictionary_learning_ext import RunConfig, SAEConfig, train

    vsae_train(out / "two", resume, "--hook", f"{EARLY},{LATE}", *DROPPING)
    run = RunConfig(
        hook=EARLY,
        remove_bos=True,
        normalize="unit",
        dtype="bfloat16",
        steps=20,
        batch_size=256,
        n_ctxs=16,
        ctx_len=64,
        eval_tokens=2048,
        eval_documents=4,
        log_steps=7,
        save_every="10",
        save_dir=str(out / "three"),
    )
    top_k = SAEConfig(architecture="top_k", k=8, dict_size=128)
    saes = {"early": top_k, "mlp": SAEConfig(k=8, dict_size=128), "late": top_k}
    train(run, saes, {"mlp": "blocks.1.hook_mlp_out", "late": LATE}, resume=resume)


def text(out: Path, resume: bool) -> None:
    """Other texts, and other ways to read one."""
    lines = ("--data", INPUTS / "text.jsonl")
    vsae_train(out / "packed", resume, *lines, "--normalize", "none", "--sigma", "0.2")
    vsae_train(out / "truncated", resume, *lines, "--text-packing", "truncate")
    files = ("--data", INPUTS / "text", "--text-passes", "2")
    vsae_train(out / "two_passes", resume, *files, "--ctx-len", "64")
    vsae_train(out / "data_seed", resume, "--data-seed", "1")


def caches(out: Path, resume: bool) -> None:
    """Caches of `vsae cache`, and runs on them."""
    if not resume:
        sizes = ("--tokens", "9000", "--eval-tokens", "4096", "--eval-documents", "4")
        both = ("--hook", f"{EARLY},{LATE}")
        vsae("cache", out / "float32", *both, *sizes, "--file-mb", "1")
        truncated = ("--data", INPUTS / "text.jsonl", "--text-packing", "truncate")
        vsae("cache", out / "float16", *truncated, *sizes, "--dtype", "float16")
        vsae("cache", out / "float16", "--verify")
    whole, half = ("--activations", out / "float32"), ("--activations", out / "float16")
    vsae_train(out / "from_float16", resume, *half)
    vsae_train(out / "from_float32", resume, *whole, "--hook", LATE, "--data-seed", "1")
    vsae_train(out / "two", resume, *whole, "--hook", f"{EARLY},{LATE}", *DROPPING)
    if not resume:
        vsae("eval", out / "from_float32", "--activations", "none")


def stored(out: Path, resume: bool) -> None:
    """A cache in SAELens's format, and activations of one's own."""
    theirs = ("--activations", INPUTS / "sae_lens", "--hook")
    vsae_train(out / "sae_lens", resume, *theirs, LATE)
    vsae_train(out / "sae_lens_two", resume, *theirs, f"{EARLY},{LATE}")
    vsae_train(out / "npy", resume, "--activations", INPUTS / "own")
    vsae_train(out / "bf16", resume, "--activations", INPUTS / "own_bf16", "--dtype", "bfloat16")


def synthetic(out: Path, resume: bool) -> None:
    """A synthetic model. Needs sae_lens."""
    vsae_train(out / "small", resume, "--model", "synthetic:small")


def torchrun(out: Path, resume: bool) -> None:
    """Two processes."""
    code = f"from same_numbers_cases import of_rank; of_rank({str(out)!r}, {resume})"
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *several, "--no-python", sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Refused(f"torchrun exited with {done.returncode}: {done.stderr}")


def of_rank(out: str, resume: bool) -> None:
    """What each process of the case `torchrun` does."""
    from dictionary_learning_ext import RunConfig, SAEConfig, train

    run = RunConfig(
        steps=20,
        batch_size=256,
        n_ctxs=16,
        max_norm_multiple=1.2,
        eval_tokens=2048,
        eval_documents=4,
        save_every="10",
        save_dir=out,
    )
    saes = {
        "vsae_top_k": SAEConfig(k=8, dict_size=128, sigma=0.3, dead_feature_threshold=1024),
        "top_k": SAEConfig(architecture="top_k", k=8, dict_size=128, dead_feature_threshold=1024),
    }
    train(run, saes, {"top_k": LATE}, resume=resume)


def later(out: Path, resume: bool) -> None:
    """A checkpoint that is evaluated, and a run from another's weights."""
    first = out / "first"
    vsae_train(first, False, "--save-steps", "5,12", "--lr", "1e-3", "--decay-start", "none")
    vsae("eval", first, "--step", "12")
    vsae("eval", first, "--tokens", "4096", *DROPPING)
    start = ("--config", first, "--init-from", first, "--data-seed", "1", "--save-steps", "none")
    vsae("train", *start, "--save-dir", out / "second")


def upstream(out: Path, resume: bool) -> None:
    """Upstream's trainSAE with our trainers and buffer."""
    from dictionary_learning.training import trainSAE

    from dictionary_learning_ext import (
        ProbabilisticTopKTrainer,
        ResidualBuffer,
        VAEaseTrainer,
        VariationalTopKTrainer,
        find_hook,
        load_language_model,
        open_text,
        trainer_options,
    )

    steps = 20
    lm = load_language_model("embedded")
    hook = find_hook(lm, LATE)
    shared = {
        "lm_name": "embedded",
        "layer": 2,
        "submodule_name": LATE,
        "device": "cpu",
        "seed": 0,
        "activation_dim": hook.activation_dim,
        "dict_size": 128,
        "steps": steps,
        "k": 8,
    }
    options = {"activation_dim": hook.activation_dim, "dict_size": 128, "k": 8, "steps": steps}
    ours = [
        {"trainer": VariationalTopKTrainer} | shared | trainer_options(name, **options)
        for name in ("recommended", "paper", "paper-as-run")
    ]
    plain = {"trainer": VariationalTopKTrainer, "posterior": "learned"}
    rivals = [{"trainer": ProbabilisticTopKTrainer}, {"trainer": VAEaseTrainer}]
    configs = [*ours, *(shared | {"warmup_steps": 5} | own for own in (plain, *rivals))]
    del configs[-1]["k"]  # VAEase has none
    buffer = ResidualBuffer(
        open_text("embedded"),
        lm,
        hook.submodule,
        n_ctxs=16,
        out_batch_size=256,
        max_norm_multiple=1.2,
    )
    trainSAE(
        buffer,
        configs,
        steps=steps,
        save_dir=str(out),
        save_steps=[10],
        device="cpu",
        normalize_activations=True,
    )
    vsae("eval", out / "trainer_0", "--tokens", "2048")


def _two_seeds(out: Path, *flags: str) -> list[Path]:
    folders = [out / f"seed{seed}" for seed in range(2)]
    for seed, folder in enumerate(folders):
        vsae_train(folder, False, *flags, "--seed", str(seed), "--data-seed", "seed")
    return folders


def features(out: Path, resume: bool) -> None:
    """Features in Python, a report's CSV, and which features come back."""
    from dictionary_learning_ext import agreement, features_of, load_language_model, steer

    one, other = _two_seeds(out)
    printed = vsae("reproduce", one, other, "--json", "--csv", out / "reproduce.csv")
    (out / "reproduce.json").write_text(printed)
    (out / "compare.json").write_text(vsae("compare", one, other, "--json"))
    pair = agreement(one, other).pair
    numbers = {"pw_mcc": pair.pw_mcc, "null": pair.null, "agreement": pair.agreement}
    write_json(out / "agreement.json", numbers)
    t.save({"match": t.as_tensor(pair.match_F)}, out / "agreement.pt")

    found = features_of(one, tokens=2048, contexts=4)
    tensors = {name: getattr(found, name) for name in ("density", "largest", "directions")}
    t.save({name: value.contiguous() for name, value in tensors.items()}, out / "features.pt")
    parts = ("activation", "token", "ids", "activations", "context", "position")
    shown = {
        str(i): {
            "top": [{name: getattr(each, name) for name in parts} for each in found.top(i, 3)],
            "logits": [list(effects) for effects in found.logits(i, 5)],
            "fires_on": found[i].fires_on,
        }
        for i in found.ranking[:10]
    }
    write_json(out / "features.json", {"ranking": found.ranking, "shown": shown})
    own = features_of(one, text=["He came to the old house. " * 5, "The sea was not old."])
    write_json(out / "own_text.json", {"density": own.density.tolist(), "tokens": own.tokens})

    lm: Any = load_language_model("embedded")
    ids = t.arange(40, 60)[None]
    with t.no_grad():
        for mode in ("add", "clamp"):
            with steer(lm, None, one, {3: 4.0, 5: -2.0}, mode=mode):
                t.save({"logits": lm._module(ids).logits}, out / f"steered_{mode}.pt")

    page = out / "scratch" / "report.html"
    page.parent.mkdir()
    sizes = shlex.split("--tokens 2048 --map-tokens 500 --synthesise 0 --pages 5")
    vsae("report", one, "--against", other, "--seeds", other, "--out", page, *sizes)
    for path in sorted(page.parent.rglob("*.csv")):
        shutil.copy(path, out / f"report_{path.name}")


def exports(out: Path, resume: bool) -> None:
    """Exports in the formats that need no other library."""
    vsae_train(out / "run", False, "--posterior", "point", "--rectify", "True")
    vsae_train(out / "signed", False)
    forms = ("dictionary-learning", "sae-lens", "sparsify", "safetensors", "sae-bench")
    for form in (*forms, "neuronpedia"):
        tokens = "2048" if form == "neuronpedia" else "512"
        vsae("export", out / "run", "--format", form, "--out", out / form, "--tokens", tokens)
    words = ("--format", "safetensors", "--tokens", "512")
    vsae("export", out / "signed", *words, "--out", out / "safetensors_signed")


def names(out: Path, resume: bool) -> None:
    """Automatic names of run folders, without the hash at their end."""
    from dictionary_learning_ext import RunConfig, SAEConfig, train

    tiny: dict[str, Any] = {"steps": 2, "batch_size": 64, "n_ctxs": 2, "eval_tokens": 0}
    tiny |= {"save_every": "none"}
    selection = {"noise_on": "selection", "noise_anneal_steps": 2, "noise_to_signal": 0.3}
    own = RunConfig(**tiny, data=str(INPUTS / "text.jsonl"), hook=LATE, data_seed=2)
    given: list[tuple[RunConfig, dict[str, Any]]] = [
        (RunConfig(**tiny), {}),
        (RunConfig(**tiny), {"k": 8, "kl_scope": "selected"} | selection),
        (RunConfig(**tiny), {"posterior": "learned", "beta": 0.25, "log_var_init": -3.0}),
        (RunConfig(**tiny), {"posterior": "point", "rectify": True, "lr": 3e-4}),
        (RunConfig(**tiny), {"select_by": "magnitude", "k_anneal_steps": 2, "prior_std": 0.5}),
        (own, {"architecture": "top_k", "seed": 3}),
        (RunConfig(**tiny), {"architecture": "relu", "l1_penalty": 0.2}),
        (RunConfig(**tiny), {"architecture": "jump_relu", "target_l0": 30.0}),
        (RunConfig(**tiny), {"architecture": "vaease"}),
        (RunConfig(**tiny), {"architecture": "probabilistic_top_k"}),
    ]
    found = []
    for run, own_settings in given:
        folders = train(run, {"sae": SAEConfig(dict_size=64, **own_settings)})
        name = str(folders["sae"]).rpartition("_")[0]
        found.append(name.replace("_bits0", ""))  # of the deleted free_bits
    write_json(out / "names.json", found)


def sweep(out: Path, resume: bool) -> None:
    """A sweep, and its tables."""
    values = {"k": [4, 8], "seed": [0, 1], "architecture": ["top_k"]}
    content = {
        "method": "grid",
        "metric": {"name": "eval/description_length", "goal": "minimize"},
        "parameters": {name: {"values": given} for name, given in values.items()},
        "command": ["vsae", "train", *SMALL.replace("--k 8 ", "").split(), "${args}"],
    }
    file = out / "sweep.yaml"
    file.write_text(json.dumps(content))  # which is YAML too
    vsae("sweep", file, "--save-dir", out / "scratch" / "runs")
    for path in (out / "scratch" / "runs").glob("*.csv"):
        (out / path.name).write_text(re.sub(r"_[0-9a-f]{6},", ",", path.read_text()))


RUN, STORED = Path("argv/scratch/run"), Path("argv/scratch/stored")
LINES = f"""
--preset recommended
--preset recommended --steps 300
--preset paper
--preset paper --steps 2000 --posterior learned
--preset paper-as-run --device cpu
--architecture top_k
--architecture batch_top_k --k 32
--architecture matryoshka --group-fractions 0.25 0.25 0.5
--architecture relu --l1-penalty 0.05 --sparsity-warmup-steps 10
--architecture jump_relu --target-l0 30 --threshold-twice
--architecture vsae --beta 0.01
--architecture vaease --gamma-init 0.5 --active-gate=0.1
--architecture probabilistic_top_k --temperature-end 1e-2
--posterior learned --beta 0.3 --log-var-init -3
--posterior point --rectify
--kl-schedule constant
--kl-schedule cosine --kl-warmup-steps 0
--noise-on values --sigma 0.2 --kl-scope all
--noise-to-signal=0.1 --noise-anneal-steps none
--select-by magnitude --k-anneal-steps 100 --prior-std 0.5
--freeze-decoder --save-steps log:4 --save-every none
--seed 3 --data-seed seed
--seed=4 --data_seed=seed
--steps 20_000
--steps +50 --eval-tokens 0
--dict_size 256 --k=8 --lr 1e-3
--max-norm-multiple none --decay-start None --warmup-steps 0
--remove-bos --overwrite --save-dir runs/x
--remove-bos False --wandb-artifacts True --wandb offline
--hook {EARLY},{LATE} --save-dir two
--data ../inputs/text.jsonl --text-packing truncate --text-passes 2
--activations ../inputs/own --normalize unit
--model synthetic:small --steps 500
--config {RUN}
--config {RUN}/config.json --steps 60
--config {RUN} --architecture top_k
--config {RUN} --posterior learned
--config {RUN} --init-from {RUN} --data-seed 1
--config {STORED}
--config {STORED} --activations none --model embedded --data embedded --hook {LATE}
--resume {RUN}
--resume auto --config {RUN} --save-dir {RUN}
--resume auto --save-dir runs/new
--lr -1e-3
--architecture relu --k 8
--posterior point --sigma 0.1
--sigma 0.2 --noise-to-signal 0.1
--stepz 3
--steps many
--overwrite False True
--k 2000
--config {RUN} --preset paper
--config nowhere
--resume {RUN} --save-dir runs/x
--resume {RUN} --lr 0.5
--architecture matryoshka --group-fractions 0.5 0.6
"""
"""Command lines of `vsae train`. The last ones are refused."""


class _Recorded(BaseException):
    """In the place of a training."""


def _flat(one: Any) -> dict[str, Any]:
    given = one.to_flat() if hasattr(one, "to_flat") else asdict(one)
    return {
        name: value for name, value in given.items() if value is not None and name not in DELETED
    }


def argv(out: Path, resume: bool) -> None:
    """What command lines of `vsae train` mean: the settings of the run and of its SAEs, resolved."""
    vsae_train(RUN, False, "--lr", "1e-3")
    vsae_train(STORED, False, "--activations", INPUTS / "own")
    loop: Any = importlib.import_module("dictionary_learning_ext.training.loop")
    names, found = [name for name in ("train", "carry_out") if hasattr(loop, name)], {}
    originals = {name: getattr(loop, name) for name in names}
    seen: dict[str, Any] = {}

    def record(run: Any, saes: Any, hooks: Any = None, *, resume: bool = False, **_: Any):
        where = [(hooks or {}).get(name, run.hook) for name in saes]
        resolved = [sae.resolve(run.steps, run.batch_size) for sae in saes.values()]
        seen["run"], seen["resume"] = _flat(run), resume
        seen["saes"] = [{"at": at} | _flat(sae) for at, sae in zip(where, resolved, strict=True)]
        raise _Recorded

    def of_plan(planned: Any, **_: Any):
        saes = {job.name: job.config.sae for job in planned.jobs}
        hooks = {job.name: job.hook for job in planned.jobs}
        record(planned.run, saes, hooks, resume=planned.resume)

    loop.train, loop.carry_out = record, of_plan  # earlier commits have no plan
    try:
        for line in ["", *LINES.strip().split("\n")]:
            seen = {"outcome": "trained"}
            try:
                vsae("train", *line.split())
                seen = {"outcome": "did nothing"}
            except _Recorded:
                pass
            except Refused:
                seen = {"outcome": "refused"}
            except (Exception, SystemExit) as error:
                seen = {"outcome": f"crashed: {error!r}"}
            found[line] = seen
    finally:
        for name in names:
            setattr(loop, name, originals[name])
    write_json(out / "settings.json", found)


Case = Callable[[Path, bool], None]
RESUMED: list[Case] = [architectures, hooks, text, caches, stored, synthetic, torchrun]
"""Those whose runs are also resumed."""
ALL: list[Case] = [*RESUMED, later, upstream, features, exports, names, sweep, argv]
CASES: dict[str, Case] = {case.__name__: case for case in ALL}


def run(names: list[str], resume: bool) -> None:
    """Run cases. An error becomes the file error.txt in the case's folder."""
    package = str(importlib.import_module("dictionary_learning_ext").__file__)
    tree = os.environ["PYTHONPATH"].partition(os.pathsep)[0]
    if not package.startswith(tree):
        raise RuntimeError(f"imported {package}, not from {tree}")
    logging.disable(logging.WARNING)
    for name in names:
        out = Path(name)
        out.mkdir(exist_ok=True)
        t.manual_seed(0)
        began, outcome = time.monotonic(), ""
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                CASES[name](out, resume)
        except (Exception, SystemExit):
            outcome = f"\n{traceback.format_exc()}"
            (out / "error.txt").write_text(outcome)
        print(f"{name}: {time.monotonic() - began:.0f} s{outcome}", file=sys.stderr, flush=True)
