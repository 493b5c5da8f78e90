"""`vsae train`'s flags as a configuration, as `vsae sweep` parses them."""

from dictionary_learning_ext.commands.flags import parse
from dictionary_learning_ext.commands.train import TRAIN
from dictionary_learning_ext.config.run import TrainConfig


def train_config(arguments):
    flags = parse(TRAIN, arguments)
    return TrainConfig(flags.sae, flags.run)
