"""What is trained: the arms, the settings and their seeds. See PROTOCOL.md."""

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.reproducibility.parts import arm_folder_name, seed_folder
from experiments.reproducibility.settings import CONFIRM, RIVALS, SAMPLED, Options, Setting
from experiments.trained_saes import train_missing

STAGE = "return_score"
RECOMMENDED = "recommended"
ARMS: dict[str, Options] = {
    "TopK": {"architecture": "top_k"},
    "BatchTopK": {"architecture": "batch_top_k"},
    "Probabilistic TopK": RIVALS["Probabilistic TopK, T from 1"],
    RECOMMENDED: SAMPLED["noise 0.3, penalty 0.03"],
}
FITTED_AT = "embedded, blocks.2, F = 4D, k/F = 1/32"
UNSEEN = "embedded, blocks.1, F = 6D, k/F = 1/32"
"""The setting that nobody has fitted, tuned or tested anything at before."""


@dataclass(frozen=True)
class Group:
    """SAEs of one setting, whose seeds are also their data orders. Each one's features are looked for in
    the others of its group."""

    name: str
    setting: Setting
    seeds: tuple[int, ...]


def _pairs(first: int, n: int) -> list[tuple[int, ...]]:
    return [(seed, seed + 1) for seed in range(first, first + 2 * n, 2)]


def _groups(name: str, seeds: list[tuple[int, ...]]) -> list[Group]:
    setting = UNSEEN_SETTING if name == UNSEEN else CONFIRM[name]
    return [Group(name, setting, each) for each in seeds]


UNSEEN_SETTING = Setting(
    "embedded_blocks1", "blocks.1.hook_resid_post", 128, dict_size=768, k=24, steps=4000
)
FIT = Group(FITTED_AT, CONFIRM[FITTED_AT], tuple(range(3000, 3008)))
TESTS: dict[str, list[Group]] = {
    name: _groups(name, seeds)
    for name, seeds in {
        FITTED_AT: _pairs(3100, 3),
        "embedded, blocks.0, F = 4D, k/F = 1/32": _pairs(3100, 3),
        "embedded, blocks.2, F = 4D, k/F = 1/8": _pairs(3100, 3),
        UNSEEN: [(3100, 3101, 3102)],
        "embedded, blocks.2, F = 32D, k/F = 1/256": _pairs(3100, 3),
    }.items()
}
CODES = [replace(FIT, seeds=pair) for pair in _pairs(FIT.seeds[0], 4)] + TESTS[
    "embedded, blocks.2, F = 4D, k/F = 1/8"
]
"""Whose codes are compared."""


def train_group(group: Group) -> dict[str, dict[int, Path]]:
    """Train the SAEs that are missing. Returns every arm's run folders, by seed."""
    folders: dict[str, dict[int, Path]] = {arm: {} for arm in ARMS}
    for seed in group.seeds:
        place = seed_folder(STAGE, group.name, seed)
        configs = {
            arm_folder_name(arm): group.setting.sae(options, seed) for arm, options in ARMS.items()
        }
        found = train_missing(group.setting.run(place, seed), place, configs)
        for arm in ARMS:
            folders[arm][seed] = found[arm_folder_name(arm)]
    return folders
