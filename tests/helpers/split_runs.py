"""Runs of split SAEs, in several processes."""

import os
import shutil
import signal
from contextlib import suppress
from unittest.mock import patch

from dictionary_learning_ext import train
from dictionary_learning_ext.config.sae import sae_settings
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


def train_each(saes, runs):
    """Train runs one after the other.

    Arguments:
        saes: the settings of the SAEs by name.
        runs: of each its settings (`run`), the names of its SAEs if they aren't all (`only`), the folder of the run that
            it continues (`continues`), and the step in which a signal to rank 1 stops it (`stops_at`).
    """
    saes = {
        name: sae_settings(sae.get("architecture", "vsae_top_k"), sae) for name, sae in saes.items()
    }
    processes = join()
    for given in runs:
        run, continues = given["run"], given.get("continues")
        if continues and processes.is_first:
            shutil.copytree(continues, run.save_dir)
        processes.meet()
        updated = updating(given.get("stops_at"))
        with patch.object(SAERun, "update", updated), suppress(Interrupted):
            own = {name: saes[name] for name in given.get("only", saes)}
            train(run, own, resume=bool(continues))
