"""Runs of split SAEs that a test starts in several processes: torchrun … split_runs.py SAES RUNS.

Both are JSON: the settings of the SAEs by name, and the runs that train them one after the other. Of a run: the
settings (`run`), the names of its SAEs if they aren't all (`only`), the folder of the run that it continues
(`continues`), and the step in which a signal to rank 1 stops it (`stops_at`).
"""

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from unittest.mock import patch

from dictionary_learning_ext import RunConfig, train
from dictionary_learning_ext.config.sae import VSAETopKConfig
from dictionary_learning_ext.errors import Interrupted
from dictionary_learning_ext.training.processes import join
from dictionary_learning_ext.training.sae_run import SAERun


def updating(stops_at):
    """SAERun.update, in which a signal comes to rank 1."""
    update = SAERun.update

    def updated(self, step, x):
        if step == stops_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, step, x)

    return updated


if __name__ == "__main__":
    saes = {name: VSAETopKConfig(**sae) for name, sae in json.loads(sys.argv[1]).items()}
    processes = join()
    for given in json.loads(sys.argv[2]):
        run, continues = RunConfig(**given["run"]), given.get("continues")
        if continues and processes.is_first:
            shutil.copytree(continues, run.save_dir)
        processes.meet()
        updated = updating(given.get("stops_at"))
        with patch.object(SAERun, "update", updated), suppress(Interrupted):
            own = {name: saes[name] for name in given.get("only", saes)}
            train(run, own, resume=bool(continues))
