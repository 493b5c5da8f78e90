"""`vsae train`'s flags as a configuration, as `vsae sweep` parses them."""

from dictionary_learning_ext.commands.flags import parse
from dictionary_learning_ext.commands.train import TRAIN
from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.training.plan import with_hook_names


def train_config(arguments):
    flags = parse(TRAIN, arguments)
    return TrainConfig(flags.sae, with_hook_names(flags.run))
