"""How often `vsae train` makes and checks its settings until its first step, and whether it parses sources for help texts.

    python -m experiments.settings_made --k 16

prints the numbers of SAE settings and of run settings that were made, and of calls of `ast` from this package. They were:

    |                          | SAE | run | ast |
    |--------------------------|-----|-----|-----|
    | before                   |     |     |     |
"""

import ast
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from dictionary_learning_ext import cli
from dictionary_learning_ext.config.checks import Checked
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig


class FirstStep(BaseException):
    """Raised instead of the first step."""


def counted(flags: list[str]) -> Counter[str]:
    """The counts of one `vsae train` with these flags, up to its first step."""
    from dictionary_learning_ext.training.sae_run import SAERun

    counts, check, parse = Counter[str](), Checked.__post_init__, ast.parse

    def checked(self: Any) -> None:
        counts["SAE"] += isinstance(self, SAEConfig)
        counts["run"] += isinstance(self, RunConfig)
        check(self)

    def parsed(*given: Any, **options: Any) -> Any:
        caller = Path(sys._getframe(1).f_code.co_filename)
        counts["ast"] += caller.is_relative_to(Path(cli.__file__).parent)
        return parse(*given, **options)

    def stop(*_: Any) -> None:
        raise FirstStep

    Checked.__post_init__, ast.parse, SAERun.update = checked, parsed, stop
    try:
        cli.main(["train", *flags])
    except FirstStep:
        return counts
    raise RuntimeError("it took no step")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        counts = counted([*sys.argv[1:], "--save-dir", f"{folder}/run"])
    print(", ".join(f"{name} {counts[name]}" for name in ("SAE", "run", "ast")))
