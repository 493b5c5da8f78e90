"""One file a subcommand: its `Flags`, a dataclass whose docstrings are the help, and `run(flags)`.

Imports nothing heavy before `run` is called, so that `vsae --help` answers at once.
"""
