"""Which dose keeps the true features? See PROTOCOL_DOSE.md.

    python -m experiments.dose.truth train      # all stages, in the protocol's order; continues where it was stopped
    python -m experiments.dose.truth tables     # write the page's tables again

    ... train --stage auxk                      # one stage

A row is one SAE. All SAEs of a part are trained in one loop, on the same samples. A part that has its rows is not run again.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as t
from scipy.optimize import linear_sum_assignment

from dictionary_learning_ext.trainers.build import build_trainer
from experiments import raw_results
from experiments.dose.arms import ARMS, KEPT, SCALES, TOP_K, sae_of
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.stages import Page, Stages

RAW = RESULTS / "dose_truth.json"
TRUE, WIDTH, PARENTS, K, BATCH = 2048, 192, 256, 16, 512
SAMPLES, LONG = 3_072_000, 16_384_000
MEASURED = 40_000
MATCHES = 0.7
"""A feature matches a true one from this absolute cosine on."""
AUXK: dict[str, float | None] = {
    "without": None,
    "a tenth of the run": SAMPLES / 10 / (512 / K),
} | {f"m = {m}": float(m) for m in (400, 1600, 6400)}
"""AuxK's threshold in F/k tokens, at F = 512 and SAMPLES."""
EARLIER: dict[str, float | None] = {f"m = {m}": float(m) for m in (25, 100, 400)}
"""The same at F = 1,024, for both arms, see the protocol's end."""
BEFORE = "means below 0 too"
"""What a vSAE's AuxK took before its defect was mended; see the protocol's end."""


@dataclass(frozen=True)
class Truth:
    """Activations whose features are known: sums of unit directions, three quarters of which fire only with a parent.

    Rates fall as a power of the rank. A row has K features on average.
    """

    directions_TD: t.Tensor
    rates_T: t.Tensor
    """of a root: how often it fires. Of a child: how often, where its parent fires"""
    parent_T: t.Tensor
    """each child's parent; a root's own number"""

    @classmethod
    def drawn(cls, seed: int = 0) -> "Truth":
        generator = t.Generator().manual_seed(seed)
        directions_TD = t.nn.functional.normalize(t.randn(TRUE, WIDTH, generator=generator), dim=1)
        roots = TRUE // 4
        parent_T = t.arange(TRUE)
        parent_T[roots:] = t.randint(PARENTS, (TRUE - roots,), generator=generator)
        rates_T = t.empty(TRUE)
        rates_T[:roots] = (1 + t.randperm(roots, generator=generator)).float() ** -0.5
        rates_T[roots:] = 0.4 * (1 + t.rand(TRUE - roots, generator=generator) * 63) ** -0.5
        frequent = rates_T[:roots]
        per_root = 1 + t.bincount(parent_T[roots:], rates_T[roots:], minlength=roots)
        rates_T[:roots] = frequent * (K / (frequent * per_root).sum())
        return cls(directions_TD, rates_T.clamp(max=0.5), parent_T)

    def sample(self, n: int, generator: t.Generator) -> tuple[t.Tensor, t.Tensor]:
        """n rows (n, D), and which features fire (n, T)."""
        on_BT = t.rand(n, TRUE, generator=generator) < self.rates_T
        on_BT &= on_BT[:, self.parent_T]
        strength_BT = (1 + 0.3 * t.randn(n, TRUE, generator=generator)).clamp_(min=0.2) * on_BT
        return strength_BT @ self.directions_TD, on_BT


@dataclass(frozen=True)
class Part:
    """SAEs that are trained together: one stage, size, seed and length."""

    stage: str
    dict_size: int
    seed: int
    arms: dict[str, dict[str, Any]]
    """by name: the arm's options, lr, m and, for a scale, its trainer"""
    samples: int = SAMPLES

    @property
    def name(self) -> str:
        return f"{self.stage}: F = {self.dict_size:,}, {self.samples / 1e6:.1f}M, seed {self.seed}"


def run_part(part: Part, raw: Path = RAW) -> None:
    content = read(raw)
    done = {row["arm"] for row in content["rows"] if row["part"] == part.name}
    arms = {name: given for name, given in part.arms.items() if name not in done}
    if not arms:
        return
    began, truth = time.monotonic(), Truth.drawn()
    steps = part.samples // BATCH
    samples = t.Generator().manual_seed(part.seed)
    held_out = truth.sample(MEASURED, t.Generator().manual_seed(part.seed + 10**6))
    factor = float(held_out[0].square().sum(1).mean() / WIDTH) ** 0.5
    held_out[0].div_(factor)
    trainers = {name: _trainer(given, part, steps) for name, given in arms.items()}
    sampled_survival: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(steps):
        x_BD = truth.sample(BATCH, samples)[0].div_(factor)
        for name, trainer in trainers.items():
            trainer.update(step, x_BD)
            if step % max(1, steps // 20) == 0 and arms[name]["options"].get("survival"):
                sampled_survival[name].append(trainer.metrics(step, x_BD)["survival"])
    rows = []
    for name, trainer in trainers.items():
        row = {"part": part.name, "arm": name, "lr": arms[name]["lr"], "m": arms[name]["m"]}
        rows.append(
            row | measured(trainer.ae, truth, *held_out) | {"survival": sampled_survival[name]}
        )
    content = read(raw)
    content["rows"] += rows
    content["parts"][part.name] = about(began, content["parts"].get(part.name))
    raw_results.write(raw, content)


def _trainer(given: dict[str, Any], part: Part, steps: int) -> Any:
    sizes = {"k": K, "dict_size": part.dict_size, "seed": part.seed}
    sae = sae_of(given["options"], **sizes, lr=given["lr"], m=given["m"])
    sae = sae.resolve(steps)
    rest: dict[str, Any] = {"layer": 0, "lm_name": "truth", "hook": "", "device": "cpu", "name": ""}
    made = {"steps": steps, "activation_dim": WIDTH, "energy": float(WIDTH), "dtype": "float32"}
    if "trainer" not in given:
        return build_trainer(sae, **made, **rest)
    arguments = sae.trainer_arguments() | {"mean_squared_norm": float(WIDTH)}
    sizes = {"steps": steps, "activation_dim": WIDTH, "layer": 0, "lm_name": "truth"}
    return given["trainer"](**arguments, **sizes, device="cpu")


@t.no_grad()
def measured(ae: Any, truth: Truth, x_ND: t.Tensor, on_NT: t.Tensor) -> dict[str, Any]:
    """How an SAE reconstructs samples, and how its features match the true ones, one to one by absolute cosine.

    F1 is of a true feature's firing and its match's, over the matched pairs. `living_true` is the share of the features that are
    not near-dead whose nearest true direction has an absolute cosine of at least MATCHES, and `living_duplicates` how many of
    these share it with another.
    """
    directions_FD = t.nn.functional.normalize(ae.decoder.weight.t(), dim=1)
    cosine_FT = (directions_FD @ truth.directions_TD.t()).abs()
    features, true = linear_sum_assignment(cosine_FT.numpy(), maximize=True)
    fired_F = t.zeros(len(directions_FD))
    both_M, mine_M, theirs_M = t.zeros(3, len(features))
    residual = 0.0
    for x_BD, on_BT in zip(x_ND.split(2000), on_NT.split(2000), strict=True):
        f_BF = ae.encode(x_BD)
        is_on_BF = f_BF != 0
        fired_F += is_on_BF.sum(0)
        mine_BM, theirs_BM = is_on_BF[:, features], on_BT[:, true]
        both_M += (mine_BM & theirs_BM).sum(0)
        mine_M += mine_BM.sum(0)
        theirs_M += theirs_BM.sum(0)
        residual += float((x_BD - ae.decode(f_BF)).square().sum())
    total = float((x_ND - x_ND.mean(0)).square().sum())
    f1_M = 2 * both_M / (mine_M + theirs_M).clamp(min=1)
    nearest_F, best_F = cosine_FT.max(1)
    is_living_F = fired_F / MEASURED >= 0.1 * K / len(fired_F)
    on_true = best_F[is_living_F & (nearest_F >= MATCHES)]
    return {
        "mcc": float(cosine_FT[features, true].mean()),
        "f1": float(f1_M.mean()),
        "fve": 1 - residual / total,
        "uniqueness": len(best_F.unique()) / len(best_F),
        "living_true": len(on_true) / max(1, int(is_living_F.sum())),
        "living_duplicates": len(on_true) - len(on_true.unique()),
        "near_dead": 1 - float(is_living_F.float().mean()),
    }


def read(raw: Path = RAW) -> dict[str, Any]:
    return raw_results.read_or(raw, {"parts": {}, "rows": []})


# --- the protocol's stages


LRS = (1e-3, 2e-3, 4e-3)


def auxk_parts() -> list[Part]:
    """AuxK's threshold, for TopK and for one survival, at F = T / 4 and T / 2, see the protocol's end."""

    def arms(names: dict[str, float | None], *of_arms: str) -> dict[str, dict[str, Any]]:
        return {
            f"{arm}, AuxK {name}": {"options": ARMS[arm], "lr": 2e-3, "m": m}
            for arm in of_arms
            for name, m in names.items()
        }

    both = (TOP_K, "survival 0.6")
    later = {name: m for name, m in AUXK.items() if name.startswith("m = ")}
    wide = arms(later, TOP_K) | arms(EARLIER, *both)
    return [Part("auxk", 512, 9000, arms(AUXK, *both)), Part("auxk", 1024, 9000, wide)]


def scale_parts(m: float) -> list[Part]:
    arms = {
        f"survival 0.6, {name}": {"options": ARMS["survival 0.6"], "lr": 2e-3, "m": m}
        | ({} if trainer is SCALES["one for all"] else {"trainer": trainer})
        for name, trainer in SCALES.items()
    }
    return [Part("scale", 512, 9000, arms)]


RATED = (TOP_K, "fixed 0.3", "survival 0.6")
"""The arms whose learning rate is searched here. Other survivals have survival 0.6's, and fixed 0.3 with a penalty
that of fixed 0.3."""


def rate_parts(m: float) -> list[Part]:
    """The learning rates, at F = T / 4."""
    arms = {
        f"{arm}, lr {lr:g}": {"options": ARMS[arm], "lr": lr, "m": m} for arm in RATED for lr in LRS
    }
    return [Part("rate", 512, 9000, arms)]


def confirm_parts(m: float, lr_of: dict[str, float]) -> list[Part]:
    """The arms at their rates on fresh seeds: at F = T / 4, T / 2 and T, and at the first for longer. Seed 9002 has m = 400,
    see the protocol's end."""
    lrs = dict.fromkeys(KEPT, lr_of["survival 0.6"]) | {TOP_K: lr_of[TOP_K]}
    lrs["fixed 0.3 and penalty"] = lr_of["fixed 0.3"]
    arms = {arm: {"options": ARMS[arm], "lr": lrs[arm], "m": m} for arm in KEPT}
    sizes = ((512, SAMPLES), (1024, SAMPLES), (TRUE, SAMPLES), (512, LONG))
    return [
        Part("confirm", size, seed, arms, samples=samples)
        for seed in (9003, 9004)
        for size, samples in sizes
    ]


def chosen_m(content: dict[str, Any]) -> float:
    """The factor of AuxK's threshold: the largest of those of EARLIER within 0.002 of the highest MCC at F = T / 2, in
    the mean of TopK and survival 0.6."""
    of_m: dict[float, list[float]] = {}
    for row in content["rows"]:
        is_kept = row["m"] in EARLIER.values() and not row["arm"].endswith(BEFORE)
        if row["part"].startswith("auxk: F = 1,024,") and is_kept:
            of_m.setdefault(row["m"], []).append(row["mcc"])
    if sum(map(len, of_m.values())) < 2 * len(EARLIER):
        raise SystemExit(
            "AuxK's threshold isn't chosen: type python -m experiments.dose.truth train --stage auxk"
        )
    means = {m: statistics.mean(own) for m, own in of_m.items()}
    return max(m for m, mcc in means.items() if mcc >= max(means.values()) - 0.002)


def chosen_lrs(content: dict[str, Any]) -> dict[str, float]:
    """Each arm's learning rate: the one with the highest FVE."""
    best: dict[str, dict[str, Any]] = {}
    for row in content["rows"]:
        if row["part"].startswith("rate"):
            arm = row["arm"].rpartition(", lr ")[0]
            best[arm] = max(best.get(arm, row), row, key=lambda each: each["fve"])
    return {arm: row["lr"] for arm, row in best.items()}


def train(arguments: argparse.Namespace) -> None:
    t.set_num_threads(1)
    if arguments.stage_of in ("all", "auxk"):
        for part in auxk_parts():
            run_part(part)
    if arguments.stage_of == "auxk":
        return
    m = chosen_m(read())
    if arguments.stage_of in ("all", "scale"):
        for part in scale_parts(m):
            run_part(part)
    if arguments.stage_of in ("all", "rate"):
        for part in rate_parts(m):
            run_part(part)
    if arguments.stage_of in ("all", "confirm"):
        for part in confirm_parts(m, chosen_lrs(read())):
            run_part(part)


SHOWN = {
    "mcc": "MCC",
    "f1": "F1",
    "fve": "FVE",
    "uniqueness": "uniqueness",
    "near_dead": "near-dead < 0.1",
    "living_true": "of the living, match a true one",
    "living_duplicates": "of these, duplicates",
}


def _text(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return f"{row[name]:.0f}" if name == "living_duplicates" else f"{row[name]:.4f}"


def tables(content: dict[str, Any]) -> list[str]:
    lines = [
        f"T = {TRUE:,} true features, D = {WIDTH}, k = {K}, batches of {BATCH}. One SAE a row.",
        "",
    ]
    for part, own in content["parts"].items():
        of_part = [row for row in content["rows"] if row["part"] == part]
        shown = [n for n in SHOWN if any(n in row for row in of_part)]
        rows = {row["arm"]: [_text(row, n) for n in shown] for row in of_part}
        columns = [SHOWN[n] for n in shown]
        lines += [f"## {part}", "", *table("", rows, columns), ""]
        lines += [f"{about_line(own)}.", ""]
    return lines


def options(parser: argparse.ArgumentParser) -> None:
    choices = ("all", "auxk", "scale", "rate", "confirm")
    parser.add_argument("--stage", dest="stage_of", choices=choices, default="all")


STAGES = Stages("dose.truth", {"train": train}, {"dose_truth": Page(tables)}, options)

if __name__ == "__main__":
    STAGES.run()
