"""Check that pyright flags the wrong calls in wrong_calls.py, and nothing else there.

    python tests/typing/check.py

Every rule of pyright is on, see pyrightconfig.json. A wrong call ends in the comment `# wrong`. A line
that is marked and not flagged, or flagged and not marked, fails. That a type is unknown does not say that a
call is wrong: an untyped signature fails both ways.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARK = "# wrong"


Place = tuple[Path, int]
"""A file and the number of a line."""


def flagged_lines(report: dict[str, Any]) -> tuple[dict[Place, str], set[Place]]:
    """What pyright says of each line, from its --outputjson; and the lines where it says more than that
    a type is unknown."""
    said: dict[Place, str] = {}
    wrong: set[Place] = set()
    for each in report["generalDiagnostics"]:
        place = Path(each["file"]).resolve(), each["range"]["start"]["line"] + 1
        rule = each.get("rule", each["severity"])
        said.setdefault(place, f"{each['message'].splitlines()[0]} ({rule})")
        if not rule.startswith("reportUnknown"):
            wrong.add(place)
    return said, wrong


def marked_lines(folder: Path) -> dict[Place, str]:
    """The wrong calls."""
    return {
        (path.resolve(), number): line.strip()
        for path in sorted(folder.glob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.endswith(f"  {MARK}")
    }


def main() -> int:
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        print(f"pyright failed:\n{done.stdout}{done.stderr}", file=sys.stderr)
        return 1
    said, wrong = flagged_lines(report)
    marked = marked_lines(HERE)
    for place in sorted(marked.keys() - wrong):
        print(f"{_shown(place)}: not flagged: {marked[place]}")
    for place in sorted(said.keys() - marked.keys()):
        print(f"{_shown(place)}: flagged, but not marked: {said[place]}")
    print(f"{len(marked.keys() & wrong)} of {len(marked)} wrong calls are flagged")
    return int(not marked or not marked.keys() == said.keys() == wrong)


def _shown(place: Place) -> str:
    path, number = place
    return f"{path.relative_to(HERE)}:{number}"


if __name__ == "__main__":
    sys.exit(main())
