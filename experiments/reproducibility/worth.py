"""What is a feature that comes back worth? See PROTOCOL_WORTH.md.

    python -m experiments.reproducibility.worth train      # effect, truth: after relative_noise's confirm
    python -m experiments.reproducibility.worth tables     # write the page's tables again

    ... effect --pairs 1                                   # of the first pair of seeds alone

It can be stopped at any time: what has its rows is not measured again.
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as t
from scipy.optimize import linear_sum_assignment

from dictionary_learning_ext.activations.hook_points import Place, hooked
from dictionary_learning_ext.config.run import ExplainOptions
from dictionary_learning_ext.evaluation.folders import OpenedFolders, open_folders
from dictionary_learning_ext.explain.endpoint import Endpoint
from dictionary_learning_ext.explain.runner import explain
from dictionary_learning_ext.features.codes import CodeCollector, Codes, same_in_another
from dictionary_learning_ext.features.reproducibility import RETURNING, reproducibility
from experiments import raw_results
from experiments.ground_truth import long_runs
from experiments.language_models.explanations import WORDS, serve, words
from experiments.pages import table
from experiments.raw_results import RESULTS, about, about_line
from experiments.reproducibility.convergence import BOTH, PAIRS, SETTINGS, TOP_K
from experiments.reproducibility.parts import arm_folder_name, seed_folder
from experiments.stages import Page, Stages

RAW = RESULTS / "worth.json"
ARMS = (TOP_K, BOTH)
TOKENS, FIRINGS, SHUFFLES, EXPLAINED = 50_000, 32, 5, 200
MOST_EXPLAINED = 0.05
"""The highest firing rate of a feature that is explained: those that fire in every excerpt can't be."""
LEAST, CALIPER = RETURNING[0], 0.3
MEASURES = {
    "effect": "effect, nats a firing",
    "logits": "cosine of logits' change",
    "current": "current token, bits",
    "previous": "previous token, bits",
    "detection": "detection",
}
SPLITS = {"direction": "as a direction", "function": "in function"}
MATCHED = ("nothing", "rate", "rate and norm")


class Firing(NamedTuple):
    """Some tokens at which features fire. M of them."""

    context_M: np.ndarray
    position_M: np.ndarray
    feature_M: np.ndarray
    value_M: np.ndarray


@dataclass
class Contexts:
    """Held-out contexts and what SAEs do there. C contexts of L tokens, all wanted."""

    ids_CL: t.Tensor
    codes: dict[str, Codes]
    """By folder; token i of context c is row c L + i."""


def read_contexts(opened: OpenedFolders) -> Contexts:
    coders = {folder: CodeCollector(sae) for folder, (sae, _) in opened.saes.items()}
    ids = []
    for batch in opened.inputs.contexts(opened.run.hook, "heldout", TOKENS):
        whole_B = batch.wanted_BL.all(1)
        ids.append(batch.input_ids_BL[whole_B])
        for coder in coders.values():
            coder.add(batch.x_BLD[whole_B].float().flatten(0, 1))
    return Contexts(t.cat(ids), {folder: coder.codes() for folder, coder in coders.items()})


# --- the measures, each of every feature: (F,)


def draw_firings(codes: Codes, length: int, seed: int) -> Firing:
    """Up to FIRINGS tokens of each feature, drawn at random."""
    code_FN, random = codes.code_NF.T.tocsr(), np.random.default_rng(seed)
    tokens, features, values = [], [], []
    for feature in range(code_FN.shape[0]):
        row = code_FN[feature]
        chosen = random.permutation(row.nnz)[:FIRINGS]
        tokens.append(row.indices[chosen])
        values.append(row.data[chosen])
        features.append(np.full(len(chosen), feature))
    token_M = np.concatenate(tokens)
    return Firing(
        token_M // length, token_M % length, np.concatenate(features), np.concatenate(values)
    )


@t.no_grad()
def effects(
    module: Any, place: Place, contexts: Contexts, codes: Codes, firing: Firing
) -> tuple[np.ndarray, t.Tensor]:
    """The mean KL where a feature's contribution is removed, (F,), and the mean change of the log-probabilities, (F, V)."""
    directions_FD = codes.directions_FD.float()
    n_features, n_tokens = len(directions_FD), module.config.vocab_size
    kl_F, count_F = np.zeros(n_features), np.zeros(n_features)
    change_FV = t.zeros(n_features, n_tokens)
    for context in np.unique(firing.context_M):
        m = np.flatnonzero(firing.context_M == context)
        ids_1L = contexts.ids_CL[int(context)][None]
        whole_LV = module(ids_1L).logits[0].float().log_softmax(-1)
        for part in np.array_split(m, -(-len(m) // 64)):
            position_b, feature_b = firing.position_M[part], firing.feature_M[part]
            value_b = t.from_numpy(firing.value_M[part]).float()
            taken_bD = value_b[:, None] * directions_FD[feature_b]
            rows_b = t.arange(len(part))

            def remove(
                x_BLD: t.Tensor, at: Any = (rows_b, position_b), less: Any = taken_bD
            ) -> t.Tensor:
                changed = x_BLD.clone()
                changed[at] -= less.to(x_BLD)
                return changed

            with hooked(place, remove):
                logits_BLV = module(ids_1L.expand(len(part), -1)).logits
            without_bV = logits_BLV[rows_b, position_b].float().log_softmax(-1)
            whole_bV = whole_LV[position_b]
            kl_b = (whole_bV.exp() * (whole_bV - without_bV)).sum(1)
            np.add.at(kl_F, feature_b, kl_b.numpy())
            np.add.at(count_F, feature_b, 1)
            change_FV.index_add_(0, t.from_numpy(feature_b), without_bV - whole_bV)
    fires_F = count_F > 0
    kl_F[fires_F] /= count_F[fires_F]
    return np.where(fires_F, kl_F, np.nan), change_FV / t.from_numpy(count_F).float().clamp(min=1)[
        :, None
    ]


def information(codes: Codes, token_N: np.ndarray, seed: int) -> np.ndarray:
    """The mutual information of whether a feature fires with a token's identity, in bits, less that of random
    permutations of the tokens."""
    random = np.random.default_rng(seed)
    by_chance = [_plug_in(codes, random.permutation(token_N)) for _ in range(SHUFFLES)]
    return _plug_in(codes, token_N) - np.mean(by_chance, axis=0)


def _plug_in(codes: Codes, token_N: np.ndarray) -> np.ndarray:
    n, n_features = codes.code_NF.shape
    count_V = np.bincount(token_N)
    row_M, feature_M = codes.code_NF.nonzero()
    joint, both = np.unique(
        feature_M.astype(np.int64) * len(count_V) + token_N[row_M], return_counts=True
    )
    feature_J, token_J = joint // len(count_V), joint % len(count_V)
    fires_F = np.bincount(feature_M, minlength=n_features) / n

    def terms(p: np.ndarray, expected: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(p > 0, p * np.log2(p / expected), 0.0)

    # A token at which a feature never fires adds p(token) log2(1 / p(silent)) to what it is silent about.
    on_J, p_J = both / n, count_V[token_J] / n
    found_F: np.ndarray = np.zeros(n_features)
    np.add.at(found_F, feature_J, terms(on_J, fires_F[feature_J] * p_J))
    np.add.at(found_F, feature_J, terms(p_J - on_J, (1 - fires_F[feature_J]) * p_J))
    seen_F = np.bincount(feature_J, weights=p_J, minlength=n_features)
    return found_F + (1 - seen_F) * -np.log2(1 - fires_F)


# --- groups


def matched_pairs(
    returns_F: np.ndarray, is_used_F: np.ndarray, logs_XF: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The features that return, each with one that doesn't and is alike in the X logarithms."""
    ours, others = (np.flatnonzero(is_used_F & own_F) for own_F in (returns_F, ~returns_F))
    away_Xab = np.abs(logs_XF[:, ours, None] - logs_XF[:, None, others])
    fits_ab: Any = (away_Xab <= CALIPER).all(0)
    a, b = linear_sum_assignment(np.where(fits_ab, (away_Xab**2).sum(0), 1e6))
    kept = fits_ab[a, b]
    return ours[a[kept]], others[b[kept]]


def rows_of(
    values: Mapping[str, np.ndarray], returns: Mapping[str, np.ndarray], codes: Codes
) -> list[dict[str, Any]]:
    """A row for each split, matching and measure."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate_F = np.log(codes.count_F / codes.code_NF.shape[0])
        sums_F = np.asarray(abs(codes.code_NF).sum(axis=0)).ravel()
        norm_F = np.log(sums_F / codes.count_F) + codes.directions_FD.norm(dim=1).log().numpy()
    rows = []
    for split, returns_F in returns.items():
        everyone = [np.flatnonzero(codes.is_used_F & own) for own in (returns_F, ~returns_F)]
        for matched in MATCHED:
            logs_XF = np.stack({"rate": [rate_F]}.get(matched, [rate_F, norm_F]))
            ours, others = (
                everyone
                if matched == "nothing"
                else matched_pairs(returns_F, codes.is_used_F, logs_XF)
            )
            for measure, value_F in values.items():
                one, other = value_F[ours], value_F[others]
                if matched != "nothing":
                    known = ~np.isnan(one) & ~np.isnan(other)
                    one, other = one[known], other[known]
                rows.append(
                    {"split": split, "matched": matched, "measure": measure}
                    | {"n": [len(one), len(other)]}
                    | {"returning": _mean(one), "others": _mean(other)}
                )
    return rows


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


# --- stages


def effect(arguments: argparse.Namespace) -> None:
    t.set_num_threads(arguments.threads)
    for seeds in PAIRS[: arguments.pairs]:
        for arm in ARMS:
            folders = [
                seed_folder("confirm", SETTINGS[0], seed) / arm_folder_name(arm) for seed in seeds
            ]
            part = f"{arm}, seeds {seeds[0]} and {seeds[1]}"
            if part in read()["parts"] or not all((f / "metrics.json").exists() for f in folders):
                continue
            began = time.monotonic()
            rows = measured_pair(folders, seeds[0])
            content = read()
            content["rows"] += [{"part": part, "arm": arm} | row for row in rows]
            content["parts"][part] = about(began)
            raw_results.write(RAW, content)


def measured_pair(folders: list[Path], seed: int) -> list[dict[str, Any]]:
    """The rows of two SAEs."""
    names = [str(folder) for folder in folders]
    opened = open_folders(names)
    model = opened.language_model
    assert model is not None, "the cache says which language model it is of"
    contexts = read_contexts(opened)
    a, b = (contexts.codes[name] for name in names)
    pair = reproducibility({n: contexts.codes[n].directions_FD for n in names}).pair
    found: dict[str, dict[str, np.ndarray]] = {}
    changes: dict[str, t.Tensor] = {}
    length = contexts.ids_CL.shape[1]
    token_N = contexts.ids_CL.flatten().numpy()
    before_N = np.where(np.arange(len(token_N)) % length, np.roll(token_N, 1), -1) + 1
    for name in names:
        codes = contexts.codes[name]
        firing = draw_firings(codes, length, seed)
        kl_F, changes[name] = effects(
            model.module, opened.hook_point.place, contexts, codes, firing
        )
        found[name] = {
            "effect": kl_F,
            "current": information(codes, token_N, seed),
            "previous": information(codes, before_N, seed),
        }
    matched_F = pair.matched_F
    cosine_F = np.full(len(matched_F), np.nan)
    has = np.flatnonzero(matched_F >= 0)
    cosine_F[has] = t.cosine_similarity(changes[names[0]][has], changes[names[1]][matched_F[has]])
    cosine_G = np.full(len(changes[names[1]]), np.nan)
    cosine_G[matched_F[has]] = cosine_F[has]
    found[names[0]]["logits"], found[names[1]]["logits"] = cosine_F, cosine_G
    rows = []
    same = same_in_another(a, b)
    of_each = zip(names, (a, b), (pair.match_F, pair.match_G), same, strict=True)
    for name, codes, match_F, same_F in of_each:
        returns = {"direction": match_F >= LEAST, "function": same_F >= LEAST}
        found[name]["detection"] = detection(Path(name), returns["direction"], codes, seed)
        rows += [
            {"sae": Path(name).parent.name} | row for row in rows_of(found[name], returns, codes)
        ]
    return rows


def detection(folder: Path, returns_F: np.ndarray, codes: Codes, seed: int) -> np.ndarray:
    """The word matcher's score of up to EXPLAINED features of each group; NaN for the others."""
    random, score_F = np.random.default_rng(seed), np.full(len(returns_F), np.nan)
    can_be_F = codes.is_used_F & (codes.count_F <= MOST_EXPLAINED * codes.code_NF.shape[0])
    chosen = [
        random.permutation(np.flatnonzero(can_be_F & own_F))[:EXPLAINED]
        for own_F in (returns_F, ~returns_F)
    ]
    only = tuple(sorted(map(int, np.concatenate(chosen))))
    server = serve({WORDS: words})
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", timeout=600)
        options = ExplainOptions(features=len(only), only=only, at_once=1)
        out = folder.parent / f"{folder.name}_words"
        explained = explain(folder, endpoint, WORDS, options=options, out=out).explanations
    finally:
        server.shutdown()
    for feature in only:
        one = explained.get(feature)
        if one is not None and one.score is not None:
            score_F[feature] = one.score.value
    return score_F


def truth(arguments: argparse.Namespace) -> None:
    """Train on synthetic activations, and compare with the true directions."""
    t.set_num_threads(arguments.threads)
    samples, truth_TD = long_runs.draw()
    for size in long_runs.SIZES:
        for steps in long_runs.LENGTHS:
            part, began = f"truth: F = {size:,}, {steps:,} steps", time.monotonic()
            if part in read()["parts"]:
                continue
            folders = long_runs.trained(samples, size, steps, TRUTH_ARMS)
            rows = [
                {"part": part, "arm": arm} | row
                for arm, of_arm in folders.items()
                for row in long_runs.true_matches(of_arm, truth_TD)
            ]
            content = read()
            content["rows"] += rows
            content["parts"][part] = about(began)
            raw_results.write(RAW, content)


TRUTH_ARMS = {
    TOP_K: {"architecture": "top_k"},
    BOTH: {"noise": 0.3, "penalty": 0.01},
}


def train(arguments: argparse.Namespace) -> None:
    effect(arguments)
    truth(arguments)


def read() -> dict[str, Any]:
    return raw_results.read_or(RAW, {"parts": {}, "rows": []})


# --- the page


def tables(content: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for split, said in SPLITS.items():
        for arm in ARMS:
            rows = [r for r in content["rows"] if r["arm"] == arm and r.get("split") == split]
            if rows:
                lines += [f"## {arm}: {said}", "", *table("", _cells(rows), _heads()), ""]
    of_truth = [row for row in content["rows"] if "true_returning" in row]
    if of_truth:
        cells = {
            f"{row['part'].removeprefix('truth: ')}, {row['arm']}, seed {row['seed']}": [
                *(f"{row[key]:.3f}" for key in ("share", "true_returning", "true_others")),
                f"{row['true_returning'] - row['true_others']:+.3f}",
            ]
            for row in of_truth
        }
        heads = ["returning", "true cosine of these", "of the others", "difference"]
        lines += ["## Truth", "", *table("", cells, heads), ""]
    told = (f"- {part}: {about_line(own)}" for part, own in sorted(content["parts"].items()))
    return [*lines, "## Parts", "", *told]


def _heads() -> list[str]:
    return ["matched on", "pairs", "returning", "others", "difference", "of each SAE"]


def _cells(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    cells = {}
    for measure, label in MEASURES.items():
        for matched in MATCHED:
            own = [r for r in rows if (r["measure"], r["matched"]) == (measure, matched)]
            own = [r for r in own if None not in (r["returning"], r["others"])]
            if own:
                differences = [r["returning"] - r["others"] for r in own]
                cells[f"{label} ({matched})"] = [
                    matched,
                    ", ".join(str(min(r["n"])) for r in own),
                    *(
                        f"{statistics.mean(r[key] for r in own):.4f}"
                        for key in ("returning", "others")
                    ),
                    f"{statistics.mean(differences):+.4f}",
                    _each(differences),
                ]
    return cells


def _each(differences: Iterable[float]) -> str:
    return ", ".join(f"{one:+.4f}" for one in differences)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=2, help="how many pairs of seeds")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


STAGES = Stages(
    "reproducibility.worth",
    {"train": train, "effect": effect, "truth": truth},
    {"worth": Page(tables)},
    options,
)

if __name__ == "__main__":
    STAGES.run()
