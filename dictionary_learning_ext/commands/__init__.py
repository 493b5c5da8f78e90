"""One file per subcommand: its flags, a dataclass whose docstrings are the help, and `run(flags)`.

Each ends with its `COMMAND`, which is all that `cli` knows of it.
Imports nothing heavy before `run` is called, so that `vsae --help` answers at once.
"""
