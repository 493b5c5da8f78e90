"""`python -m dictionary_learning_ext COMMAND …` is `vsae COMMAND …`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
