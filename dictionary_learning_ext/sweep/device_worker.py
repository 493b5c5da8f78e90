"""What a process of `device_pool` runs: it trains the chunk that comes on its standard input.

What goes wrong because of what a user gave is written to the standard output, all else to the
standard error.
"""

import logging
import os
import pickle
import signal
import sys
import threading

from ..errors import Interrupted, TrainingError, UserError


def main() -> int:
    """Train the chunk, and return the exit status: as that of the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no result
    chunk = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_pool, daemon=True).start()
    with result:
        try:
            chunk.train()
        except Interrupted as stop:
            return stop.exit_code
        except TrainingError as error:
            result.write(error.as_typed)
            return 2
        except UserError as error:
            result.write(f"{chunk}: {error.as_typed}")
            return 2
    return 0


def _end_with_the_pool() -> None:
    """Stop as on SIGTERM once the pool is gone, even if it was killed: it never closes the pipe."""
    os.read(0, 1)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
