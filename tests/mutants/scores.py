"""The share of mutants that the tests notice, by folder, and the file of those that survived."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LEAST = {"trainers": 0.9, "evaluation": 0.9}
"""The share that must be noticed, by folder."""
LEAST_ELSEWHERE = 0.8
GPU_ONLY = "only on a GPU"
"""How the reason of an equivalent mutant begins that a test could notice on a GPU."""


def too_low(ran: Mapping[str, int], alive: Mapping[str, int]) -> list[str]:
    """The folders, each in a sentence, in which too few mutants were noticed."""
    found = []
    for folder, n in ran.items():
        noticed, least = n - alive.get(folder, 0), LEAST.get(folder, LEAST_ELSEWHERE)
        if noticed < least * n:
            found.append(f"{folder}: {noticed} of {n} were noticed; expected {least:.0%}")
    return found


def table(
    ran: Mapping[str, int], alive: Mapping[str, int], reasons: Iterable[tuple[str, str]]
) -> str:
    """The scores of each folder and of all together.

    Arguments:
        ran, alive: how many mutants were run and survived, by folder.
        reasons: the folder of each equivalent mutant, and why no test can notice it.
    """
    same = list(reasons)
    on_gpu = Counter(folder for folder, reason in same if reason.startswith(GPU_ONLY))
    never = Counter(folder for folder, reason in same if not reason.startswith(GPU_ONLY))
    lines = [f"{'':14}{'mutants':>8}{'noticed':>8}{'score':>7}{'equivalent':>12}{GPU_ONLY:>15}"]
    rows = {one: (n, alive.get(one, 0), never[one], on_gpu[one]) for one, n in ran.items()}
    total = [sum(column) for column in zip((0, 0, 0, 0), *rows.values(), strict=True)]
    for name, (n, left, equivalent, gpu) in {**rows, "all": total}.items():
        score = f"{(n - left) / max(n, 1):.0%}"
        lines.append(f"{name:14}{n:8}{n - left:8}{score:>7}{equivalent:12}{gpu:15}")
    return "\n".join(lines)


def survivors_in(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The survivors of the last run of each folder. Raises SystemExit if there was none."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; run `make mutants` first")
    return json.loads(path.read_text(encoding="utf-8"))


def write_survivors(path: Path, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write the survivors of these folders, and keep those of the others."""
    former = survivors_in(path) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**former, **found}, indent=1), encoding="utf-8")
