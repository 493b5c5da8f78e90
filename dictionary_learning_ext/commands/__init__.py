"""The subcommands: their flags, dataclasses whose docstrings are the help, and what they do with them.

Each command is a `Command`, in capitals at the end of its file, which is all that `cli` knows of it.
Nothing heavy is imported before a command runs, so that `vsae --help` answers at once.
"""
