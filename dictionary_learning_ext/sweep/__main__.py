"""`python -m dictionary_learning_ext.sweep DEVICE SAVE_DIR NAME…` trains some runs of the sweep in a folder.

`devices.train_on` starts it. It reads the settings in sweep.json, and prints errors to the standard error.
"""

import logging
import sys
from pathlib import Path

from ..errors import Interrupted, UserError
from .runner import chunk_in

logger = logging.getLogger(__name__)


def main(device: str, save_dir: str, *names: str) -> int:
    """Train the runs, or continue them. Returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format=f"{device}: %(levelname)s: %(message)s")
    try:
        chunk_in(Path(save_dir), names, device).train()
    except Interrupted as stop:
        return stop.exit_code
    except UserError as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
