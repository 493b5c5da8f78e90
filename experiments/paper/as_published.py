"""What in the vSAE of the paper's public code kills features? What runs, and in which order: PROTOCOL_AS_PUBLISHED.md.

    python -m experiments.paper.as_published train                  # all stages; continues where it was stopped
    python -m experiments.paper.as_published train --stage pair     # one stage
    python -m experiments.paper.as_published tables                 # write the page again

    The stage `smollm2` reads activations of SmolLM2-135M from disk:
    python -m experiments.language_models.smollm2 runs/smollm2-135m
    vsae cache runs/smollm2_cache --model runs/smollm2-135m --hook blocks.1.hook_resid_post,blocks.3.hook_resid_post \
      --tokens 2000000 --text-passes 2 --eval-tokens 60000

A row is one SAE, and is written as soon as it is measured. Weights are kept in runs/, where the pairs of seeds are compared.

File and line are those of https://github.com/ZachData/SPAR-Variational-Sparse-Autoencoders at 8e1581a, in
dictionary_learning/trainers/vsae_topk.py unless another file is named. Shapes: B tokens, D activation_dim, F dict_size, K = k.
"""

import argparse
import itertools
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch as t
from dictionary_learning.dictionary import Dictionary
from dictionary_learning.trainers.top_k import geometric_median
from torch.nn.functional import linear

from dictionary_learning_ext import RunConfig
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.codes.codes import encode
from dictionary_learning_ext.evaluation.measure import measure
from dictionary_learning_ext.features.agreement import same_in_another
from dictionary_learning_ext.features.reproducibility import reproducibility
from dictionary_learning_ext.trainers.kernels.select import top_k
from experiments import raw_results
from experiments.pages import each, labels_of, save_plot, table
from experiments.paper.reproduced_figures import figure_3, figure_8_9
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages
from experiments.trained_saes import run_settings

RAW, RUNS = RESULTS / "as_published.json", Path("runs/as_published")
FIRST, LAST = "blocks.0.hook_resid_post", "blocks.3.hook_resid_post"
D, BATCH, LR = 128, 192, 8e-4
SMOLLM2, CACHE = "SmolLM2-135M, ", "runs/smollm2_cache"
SMOLLM2_WIDTH, SINKS = 576, 10.0
HELD_OUT, DOCUMENTS = 50_000, 64
NEVER = 10_000_000
"""The tokens without firing after which a feature is dead (vsae_topk.py:628, top_k.py:113): more than a run has."""
RETURNS = 0.7
METRICS = ("alive", "near_dead_0.1", "near_dead_0.5", "fve")

Row = dict[str, Any]


# --- the SAE and its step


@dataclass(frozen=True)
class Arm:
    """What the authors' vSAE and their TopK differ in. The defaults are their vSAE's."""

    kl: float = 1.0
    """kl_coeff"""
    dead_after: int = NEVER
    """tokens after which AuxK, of weight 1/32, calls a feature dead"""
    decoder: str = "free"
    """or `unit`: the gradient is projected, and columns are scaled to 1 after each step"""
    start: float = 0.1
    """norm of the encoder's rows at the start, and of a free decoder's columns, which are the same directions"""
    is_centred: bool = False
    """b_dec is subtracted from x, and starts at the geometric median; else the decoder's bias starts at 0"""
    is_sampled: bool = False
    """learned variance"""
    lr: float = LR
    dtype: str = "bfloat16"


THEIRS = Arm()


def their_top_k(dict_size: int) -> Arm:
    """Their TopK, with its own rate (top_k.py:412)."""
    lr = 2e-4 / (dict_size / 2**14) ** 0.5
    return Arm(kl=0.0, decoder="unit", start=1.0, is_centred=True, lr=lr)


class PublishedSAE(Dictionary, t.nn.Module):
    """z = relu(W_enc (x - b) + b_enc), its k largest, and W_dec f + b_dec: b is b_dec if it is centred, else 0."""

    def __init__(self, activation_dim: int, dict_size: int, k: int, arm: Arm, seed: int):
        super().__init__()
        self.activation_dim, self.dict_size, self.k, self.arm = activation_dim, dict_size, k, arm
        self.encoder = t.nn.Linear(activation_dim, dict_size)
        self.decoder = t.nn.Linear(dict_size, activation_dim, bias=False)
        self.b_dec = t.nn.Parameter(t.zeros(activation_dim))
        generator = t.Generator().manual_seed(seed)
        with t.no_grad():
            w_DF = t.randn(activation_dim, dict_size, generator=generator)  # :189
            w_DF /= w_DF.norm(dim=0)
            self.encoder.weight.copy_(arm.start * w_DF.T)  # :195, :199
            self.decoder.weight.copy_(w_DF if arm.decoder == "unit" else arm.start * w_DF)
            self.encoder.bias.zero_()
        if arm.is_sampled:
            self.var_encoder = t.nn.Linear(activation_dim, dict_size)
            t.nn.init.kaiming_uniform_(self.var_encoder.weight, a=0.01, generator=generator)  # :212
            t.nn.init.constant_(self.var_encoder.bias, -2.0)  # :216

    @classmethod
    def from_pretrained(cls, path: Path, k: int, arm: Arm) -> "PublishedSAE":
        """As it was saved. It takes raw activations."""
        state = t.load(path, weights_only=True)
        dict_size, activation_dim = state["encoder.weight"].shape
        sae = cls(activation_dim, dict_size, k, replace(arm, dtype="float32"), seed=0)
        sae.load_state_dict(state)
        return sae

    def rounded(self, x: t.Tensor) -> t.Tensor:
        """As if it were stored in the parameters' dtype. So is the gradient."""
        return x if self.arm.dtype == "float32" else x.bfloat16().float()

    def centred(self, x: t.Tensor) -> t.Tensor:
        return self.rounded(x - self.b_dec) if self.arm.is_centred else x

    def linear(self, x: t.Tensor, weight: t.Tensor, bias: t.Tensor) -> t.Tensor:
        """In the parameters' dtype, with sums in float32."""
        if self.arm.dtype == "float32":
            return linear(x, weight, bias)
        return linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()

    def mean(self, x: t.Tensor) -> t.Tensor:
        return self.linear(self.centred(x), self.encoder.weight, self.encoder.bias).relu()  # :252

    def selected(self, z: t.Tensor) -> t.Tensor:
        _, indices_NK = top_k(z.detach().abs().flatten(0, -2), self.k)  # :267
        indices = indices_NK.view(*z.shape[:-1], self.k)
        return t.zeros_like(z).scatter(-1, indices, z.gather(-1, indices))

    def encode(self, x: t.Tensor) -> t.Tensor:
        return self.selected(self.mean(x))

    def decode(self, f: t.Tensor) -> t.Tensor:
        return self.linear(f, self.decoder.weight, self.b_dec)

    def forward(self, x: t.Tensor) -> t.Tensor:
        return self.decode(self.encode(x))

    @t.no_grad()
    def scale_biases(self, scale: float) -> None:
        self.encoder.bias.mul_(scale)
        self.b_dec.mul_(scale)


class Step:
    """Their training step, with the arm's switches."""

    def __init__(self, sae: PublishedSAE, steps: int, seed: int):
        self.sae, self.arm, self.parameters = sae, sae.arm, list(sae.parameters())
        self.optimizer = t.optim.Adam(
            self.parameters, lr=self.arm.lr, betas=(0.9, 0.999), fused=True
        )
        warmup, decay_start = max(200, int(0.02 * steps)), int(0.8 * steps)  # :637, :645

        def lr_scale(step: int) -> float:  # trainer.py:152
            if step < warmup:
                return step / warmup
            return (steps - step) / (steps - decay_start) if step >= decay_start else 1.0

        self.scheduler = t.optim.lr_scheduler.LambdaLR(self.optimizer, lr_scale)
        self.kl_warmup = int(0.1 * steps)  # :642
        self.tokens_since_fired_F = t.zeros(sae.dict_size, dtype=t.long)
        self.noise = t.Generator().manual_seed(seed)

    def update(self, step: int, x_BD: t.Tensor) -> None:
        sae, arm = self.sae, self.arm
        with t.no_grad():
            if step == 0:
                if arm.is_centred:  # :975
                    sae.b_dec.copy_(geometric_median(x_BD))
                self.store()
        self.optimizer.zero_grad()
        self.loss(step, x_BD).backward()
        weight = sae.decoder.weight
        if arm.decoder == "unit":  # top_k.py:588
            assert weight.grad is not None
            directions_DF = weight.detach() / weight.detach().norm(dim=0)
            weight.grad -= (weight.grad * directions_DF).sum(0) * directions_DF
        t.nn.utils.clip_grad_norm_(self.parameters, 1.0)  # :988
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(sae.rounded(parameter.grad))
        self.optimizer.step()
        self.scheduler.step()
        with t.no_grad():
            if arm.decoder == "unit":  # top_k.py:607
                weight /= weight.norm(dim=0)
            self.store()

    def loss(self, step: int, x_BD: t.Tensor) -> t.Tensor:
        sae, arm = self.sae, self.arm
        mu_BF = z_BF = sae.mean(x_BD)
        if arm.is_sampled:
            log_var_BF = sae.rounded(sae.var_encoder(sae.centred(x_BD))).clamp(-6.0, 2.0)  # :296
            noise_BF = t.randn(mu_BF.shape, generator=self.noise)
            z_BF = sae.rounded(mu_BF + noise_BF * (log_var_BF / 2).exp())  # :303
        f_BF = sae.selected(z_BF)
        residual_BD = sae.rounded(x_BD - sae.decode(f_BF))
        loss = residual_BD.square().sum(1).mean()  # :914
        if arm.kl:
            warmed = min(1.0, step / self.kl_warmup)  # :84
            squares_BF = (mu_BF if arm.is_sampled else z_BF).clamp(-10.0, 10.0).square()  # :826
            if arm.is_sampled:  # :819
                squares_BF = squares_BF + log_var_BF.exp() - 1 - log_var_BF
            loss = loss + arm.kl * warmed * 0.5 * squares_BF.sum(1).mean()  # :827
        if arm.dead_after < NEVER:
            loss = loss + self.auxk_loss(residual_BD.detach(), f_BF, z_BF) / 32
        return loss

    def auxk_loss(self, residual_BD: t.Tensor, f_BF: t.Tensor, z_BF: t.Tensor) -> t.Tensor:
        """:837 to :886."""
        sae = self.sae
        self.tokens_since_fired_F += len(f_BF)
        self.tokens_since_fired_F[f_BF.detach().sum(0) > 0] = 0
        is_dead_F = self.tokens_since_fired_F >= self.arm.dead_after
        if not (dead := int(is_dead_F.sum())):
            return z_BF.new_zeros(())
        k = min(sae.activation_dim // 2, dead)  # :759
        indices_BK = t.where(is_dead_F, z_BF.abs(), -t.inf).topk(k, sorted=False).indices
        f_aux_BF = t.zeros_like(z_BF).scatter(1, indices_BK, z_BF.gather(1, indices_BK))
        # Their decoder has its bias here, their TopK's has none (:871, top_k.py:477).
        x_aux_BD = sae.rounded(sae.decoder(f_aux_BF) + (0 if self.arm.is_centred else sae.b_dec))
        squares = (residual_BD - x_aux_BD).square().sum(1).mean()
        variance = (residual_BD - residual_BD.mean(0)).square().sum(1).mean()
        return squares / (variance + 1e-8)

    def store(self) -> None:
        """Round the parameters and Adam's moments to their dtype."""
        if self.arm.dtype == "float32":
            return
        for parameter in self.parameters:
            parameter.copy_(parameter.bfloat16())
            for moment in ("exp_avg", "exp_avg_sq"):
                if (value := self.optimizer.state[parameter].get(moment)) is not None:
                    value.copy_(value.bfloat16())


# --- what runs


@dataclass(frozen=True)
class Part:
    """SAEs of one hook point, size, k and length, on some seeds."""

    stage: str
    hook: str
    dict_size: int
    ratio: int
    """F/k"""
    steps: int
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    lm: str = ""
    """in the part's name: the embedded model's is empty"""
    text: str = ""
    """likewise: text that is packed"""

    @property
    def activation_dim(self) -> int:
        return SMOLLM2_WIDTH if self.lm == SMOLLM2 else D

    @property
    def name(self) -> str:
        place = self.lm + self.hook.removesuffix(".hook_resid_post")
        size = f"F = {self.dict_size // self.activation_dim}D, k/F = 1/{self.ratio}{self.text}"
        return f"{self.stage}: {place}, {size}, {self.steps:,} steps"

    @property
    def k(self) -> int:
        return self.dict_size // self.ratio


FACTORS: dict[str, dict[str, Any]] = {
    "KL": {"0": {"kl": 0.0}, "1": {"kl": 1.0}},
    "AuxK": {"off": {}, "on": {"dead_after": 1600 * 32}},
    "decoder": {"free": {}, "unit": {"decoder": "unit"}},
    "start": {"0.1": {}, "1": {"start": 1.0}},
    "centring": {"no": {}, "yes": {"is_centred": True}},
}


def factorial() -> dict[str, Arm]:
    arms = {}
    for levels in itertools.product(*(of.items() for of in FACTORS.values())):
        name = ", ".join(f"{f} {level}" for f, (level, _) in zip(FACTORS, levels, strict=True))
        arms[name] = replace(THEIRS, **{n: v for _, given in levels for n, v in given.items()})
    return arms


def pair(dict_size: int) -> dict[str, Arm]:
    return {"their TopK": their_top_k(dict_size), "their vSAE": THEIRS}


def in_float32(dict_size: int) -> dict[str, Arm]:
    return {
        f"{name}, float32": replace(arm, dtype="float32") for name, arm in pair(dict_size).items()
    }


TWO, THREE, REAL = (9100, 9101), (9102, 9103, 9104), (9105, 9106)
SMALL, LARGE, WIDE = 16 * D, 64 * D, 16 * SMOLLM2_WIDTH
ONE_A_CONTEXT = ", one document a context"
_TOP_K_OF_FACTORIAL = replace(their_top_k(SMALL), lr=LR)
PARTS = (
    Part("factorial", FIRST, SMALL, 32, 4000, TWO, factorial()),
    Part(
        "precision",
        FIRST,
        SMALL,
        32,
        4000,
        TWO,
        {
            "TopK, float32": replace(_TOP_K_OF_FACTORIAL, dtype="float32"),
            "their vSAE, float32": replace(THEIRS, dtype="float32"),
        },
    ),
    *(Part("pair", FIRST, SMALL, ratio, 10_001, THREE, pair(SMALL)) for ratio in (32, 128, 64, 16)),
    Part("pair", LAST, SMALL, 32, 10_001, THREE, pair(SMALL)),
    *(Part("large", LAST, LARGE, ratio, 10_001, TWO, pair(LARGE)) for ratio in (32, 128)),
    *(
        Part("smollm2", LAST, WIDE, ratio, 10_001, REAL, pair(WIDE), lm=SMOLLM2)
        for ratio in (32, 128)
    ),
    Part("documents", LAST, SMALL, 32, 10_001, TWO, pair(SMALL), text=ONE_A_CONTEXT),
    Part(
        "precision",
        LAST,
        SMALL,
        32,
        10_001,
        TWO,
        in_float32(SMALL),
    ),
    Part("precision", LAST, WIDE, 32, 10_001, REAL, in_float32(WIDE), lm=SMOLLM2),
    Part(
        "variance",
        FIRST,
        SMALL,
        32,
        10_001,
        TWO,
        {"learned variance": replace(THEIRS, is_sampled=True)},
    ),
)
"""In the protocol's order."""


def read() -> dict[str, Any]:
    return raw_results.read_or(RAW, {"parts": {}, "rows": [], "pairs": []})


def rows_of(content: dict[str, Any], part: Part, arm: str, kind: str = "rows") -> list[Row]:
    return [row for row in content[kind] if (row["part"], row["arm"]) == (part.name, arm)]


def train(arguments: argparse.Namespace) -> None:
    t.set_num_threads(1)
    t.set_flush_denormal(True)
    for part in PARTS:
        if arguments.stage_of not in ("all", part.stage):
            continue
        for seed in part.seeds:
            train_seed(part, seed)
        for one, other in itertools.combinations(part.seeds, 2):
            compare(part, one, other)


def run_config(part: Part, seed: int) -> RunConfig:
    run = run_settings(
        hook=part.hook,
        steps=part.steps,
        batch_size=BATCH,
        n_ctxs=2500,
        ctx_len=128,
        text_passes=2,
        data_seed=seed,
        eval_documents=DOCUMENTS,
        eval_tokens=HELD_OUT,
    )
    if part.lm == SMOLLM2:
        known = open_stored(CACHE).settings | {"hook": part.hook}
        return replace(run, **known, max_norm_multiple=SINKS)
    return replace(run, text_packing="truncate", text_passes=5) if part.text else run


def weights_of(part: Part, arm: str, seed: int) -> Path:
    folder = part.name.replace(": ", "_").replace(", ", "_").replace("/", ":").replace(" ", "")
    return RUNS / folder / f"{arm.replace(', ', '_').replace(' ', '')}_{seed}.pt"


def train_seed(part: Part, seed: int) -> None:
    """Train and measure the SAEs of a seed that have no row yet, one by one on the same batches."""
    content = read()
    missing = [
        name
        for name in part.arms
        if seed not in (row["seed"] for row in rows_of(content, part, name))
    ]
    if not missing:
        return
    inputs = open_inputs(run_config(part, seed), [part.hook])
    source = inputs.training_batches()
    batches = [source.next()[part.hook].bfloat16() for _ in range(part.steps)]
    first = t.cat([x.float().square().sum(1) for x in islice(batches, 100)])
    factor = float(first.mean().sqrt())  # training.py:83
    for name in missing:
        began = time.monotonic()
        sae = PublishedSAE(part.activation_dim, part.dict_size, part.k, part.arms[name], seed)
        trainer = Step(sae, part.steps, seed)
        for step, x_BD in enumerate(batches):
            trainer.update(step, (x_BD / factor).float())
        trained = time.monotonic() - began
        sae.scale_biases(factor)
        sae.arm = replace(sae.arm, dtype="float32")
        path = weights_of(part, name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        t.save(sae.state_dict(), path)
        row = {"part": part.name, "arm": name, "seed": seed, "seconds": round(trained)}
        row |= measured(sae, inputs.held_out(part.hook, HELD_OUT))
        if part.stage == "pair" and seed == part.seeds[0]:
            codes = encode([sae], inputs.contexts(part.hook, "heldout", HELD_OUT))[0]
            highest_F = codes.code_NF.max(axis=0).toarray().ravel() / factor
            row["largest"] = [round(float(value), 3) for value in highest_F[highest_F > 0]]
        content = read()
        content["rows"].append(row)
        content["parts"][part.name] = about(began, content["parts"].get(part.name))
        raw_results.write(RAW, content)
        print(f"{part.name}, {name}, seed {seed}: {trained:.0f} s", flush=True)


def measured(sae: PublishedSAE, held_out: Any) -> dict[str, Any]:
    """Metrics, the loss that reconstructions add, and the lengths of the decoder's columns."""
    metrics = measure({"sae": (sae, 1.0)}, held_out)["sae"]
    norms_F = sae.decoder.weight.detach().norm(dim=0)
    return {
        **{name: metrics[name] for name in (*METRICS, "l0", "cossim", "frac_recovered")},
        "loss_added": metrics["loss_reconstructed"] - metrics["loss_original"],
        "norms": norms_F.quantile(t.tensor([0, 0.1, 0.5, 0.9, 1.0])).tolist(),
    }


def compare(part: Part, one: int, other: int) -> None:
    """What comes back between two seeds, of all F features."""
    content = read()
    seeds = [one, other]
    arms = [
        name
        for name in part.arms
        if all(weights_of(part, name, seed).exists() for seed in seeds)
        and seeds not in (row["seeds"] for row in rows_of(content, part, name, "pairs"))
    ]
    if not arms:
        return
    inputs = open_inputs(run_config(part, one), [part.hook])
    for name in arms:
        paths = [weights_of(part, name, seed) for seed in seeds]
        saes = [PublishedSAE.from_pretrained(path, part.k, part.arms[name]) for path in paths]
        codes = encode(saes, inputs.contexts(part.hook, "heldout", HELD_OUT))
        directions = {str(s): c.directions_FD for s, c in zip(seeds, codes, strict=True)}
        matched = reproducibility(directions).pair
        alike_F, _ = same_in_another(*codes)
        row = {
            "part": part.name,
            "arm": name,
            "seeds": seeds,
            "as_direction": float((matched.cosines[0] >= RETURNS).mean()),
            "in_function": float((alike_F >= RETURNS).mean()),
        }
        content = read()
        content["pairs"].append(row)
        raw_results.write(RAW, content)


# --- the page


def tables(content: dict[str, Any]) -> list[str]:
    lines = [
        "Numbers of several seeds are separated by /. What comes back is of all features, a number for each pair of seeds. "
        f"{HELD_OUT:,} held-out tokens; the loss is in nats per token.",
        "",
    ]
    for part in PARTS:
        if part.name not in content["parts"]:
            continue
        rows = {name: cells(content, part, name) for name in part.arms}
        shown = {name: own for name, own in rows.items() if own}
        columns = [*labels_of(METRICS), "loss added", "median decoder norm"]
        columns += ["as a direction", "in what they do"]
        lines += [f"## {part.name}", "", *table("", shown, columns), ""]
        if part.stage == "factorial":
            lines += list(effects(content, part))
        lines += [f"{about_line(content['parts'][part.name])}.", ""]
    return lines


def cells(content: dict[str, Any], part: Part, arm: str) -> list[str]:
    rows, pairs = rows_of(content, part, arm), rows_of(content, part, arm, "pairs")
    if not rows:
        return []
    return [
        *(each([row[name] for row in rows]) for name in METRICS),
        each([row["loss_added"] for row in rows]),
        each([row["norms"][2] for row in rows]),
        *(each([row[name] for row in pairs]) for name in ("as_direction", "in_function")),
    ]


def effects(content: dict[str, Any], part: Part) -> Iterator[str]:
    """What each factor changes, the mean over the 16 combinations of the others, if all cells are there."""
    shown = ("alive", "near_dead_0.1", "fve", "loss_added")
    means = {}
    for name in part.arms:
        rows = rows_of(content, part, name)
        if len(rows) < len(part.seeds):
            return
        means[name] = [statistics.mean(row[metric] for row in rows) for metric in shown]
    found = {}
    for factor, levels in FACTORS.items():
        low, high = (f"{factor} {level}" for level in levels)
        changes = [
            [after - before for before, after in zip(means[name], means[changed], strict=True)]
            for name in means
            if low in name.split(", ")
            for changed in [name.replace(low, high)]
        ]
        found[f"{low} to {high.split()[-1]}"] = [
            f"{statistics.mean(own):+.3f} ({min(own):+.3f} to {max(own):+.3f})"
            for own in zip(*changes, strict=True)
        ]
    yield from table(
        "mean change (range over the 16 pairs of cells)",
        found,
        ["alive", "near-dead < 0.1", "FVE", "loss added"],
    )
    yield ""


def options(parser: ArgumentParser) -> None:
    choices = ("all", *dict.fromkeys(part.stage for part in PARTS))
    parser.add_argument("--stage", dest="stage_of", choices=choices, default="all")


def draw(content: dict[str, Any], page: Path) -> None:
    """The paper's figures 3, 8 and 9, of their pair at blocks.0: 3 of all k/F that have run, 8 and 9 of k/F = 1/32."""
    parts = sorted(
        (part for part in PARTS if (part.stage, part.hook) == ("pair", FIRST)),
        key=lambda part: -part.ratio,
    )
    whole = [p for p in parts if all(len(rows_of(content, p, n)) == len(p.seeds) for n in p.arms)]
    if not whole:
        return
    cells = {name: [rows_of(content, part, name) for part in whole] for name in pair(SMALL)}
    folder = page.with_suffix("")
    save_plot(figure_3(cells, [part.ratio for part in whole]), folder / "figure_3.png", dpi=75)
    for part in whole:
        if part.ratio == 32:
            largest = {name: rows_of(content, part, name)[0]["largest"] for name in part.arms}
            save_plot(figure_8_9(largest, part.dict_size), folder / "figure_8_9.png", dpi=75)


STAGES = Stages(
    "paper.as_published", {"train": train}, {"as_published": Page(tables, draw)}, options
)

if __name__ == "__main__":
    STAGES.run()
