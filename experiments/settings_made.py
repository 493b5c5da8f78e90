"""How often `vsae train` makes its settings until the first step, and how often it parses sources of the package.

    python -m experiments.settings_made --k 16

It counts objects that are made, which are checked each time. With --k 16 alone:

| | of the SAE | of the run | calls of ast |
|---|---|---|---|
| before the settings were made in one way | 24 | 11 | 4 |
| since | 4 | 3 | 0 |
"""

import ast
import contextlib
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from dictionary_learning_ext import cli
from dictionary_learning_ext.config.checks import Checked
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.config.sae import SAEConfig

PACKAGE = Path(cli.__file__).parent


class FirstStep(BaseException):
    """Raised in place of the first step."""


def counted(flags: list[str]) -> Counter[str]:
    """The counts of one `vsae train` with these flags, in the present folder."""
    from dictionary_learning_ext.training.sae_run import SAERun

    counts, check, parse = Counter[str](), Checked.__post_init__, ast.parse

    def checked(self: Any) -> None:
        counts["SAE"] += isinstance(self, SAEConfig)
        counts["run"] += isinstance(self, RunConfig)
        check(self)

    def parsed(*given: Any, **options: Any) -> Any:
        caller = Path(sys._getframe(1).f_code.co_filename)
        counts["ast"] += caller.is_relative_to(PACKAGE)
        return parse(*given, **options)

    def stop(*_: Any) -> None:
        raise FirstStep

    made: Any = SAERun
    Checked.__post_init__, ast.parse, made.update = checked, parsed, stop
    with contextlib.suppress(FirstStep):
        cli.main(["train", *flags])
        raise RuntimeError("the command ended before a step")
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = counted(sys.argv[1:])
    print(*(f"{name} {found[name]}" for name in ("SAE", "run", "ast")), sep=", ")
