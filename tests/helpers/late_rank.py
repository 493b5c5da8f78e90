"""What a test runs in two processes, of which the second doesn't start. It imports no more than torch."""

import os
import signal
from datetime import timedelta

from dictionary_learning_ext.training import heartbeat
from dictionary_learning_ext.training.processes import joined

heartbeat.PATIENCE = timedelta(seconds=2)
if os.environ["RANK"] == "1":
    signal.pause()
with joined():
    pass
