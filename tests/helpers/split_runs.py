"""A run of split SAEs that a test starts in several processes: torchrun … split_runs.py SETTINGS.

SETTINGS is JSON: the `run`'s, each of the `saes`', whether to `resume`, and of a run that is to be killed the step, the
rank and the signal.
"""

import json
import os
import sys
from unittest.mock import patch

from dictionary_learning_ext import RunConfig, SAEConfig, train
from dictionary_learning_ext.training.sae_run import SAERun

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    update = SAERun.update
    at, rank, signal = settings.get("killed", (-1, "", 0))

    def updated(self, step, x):
        if step == at and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal)
        update(self, step, x)

    with patch.object(SAERun, "update", updated):
        train(
            RunConfig(**settings["run"]),
            {name: SAEConfig(**sae) for name, sae in settings["saes"].items()},
            resume=settings["resume"],
        )
