"""The run that is measured is the one of the committed page, whatever the default preset becomes."""

from dictionary_learning_ext.commands.flags import parse
from dictionary_learning_ext.commands.train import TRAIN
from dictionary_learning_ext.config.presets import DEFAULT_PRESET, PRESETS
from dictionary_learning_ext.config.run import TrainConfig
from experiments.robustness.memory_of_long_runs import FLAGS


def test_the_flags_undo_the_default_preset():
    flags = [*FLAGS.split(), "--steps=300"]
    typed = {flag.removeprefix("--").partition("=")[0].replace("-", "_") for flag in flags}
    train = parse(TRAIN, flags)
    settings, defaults = TrainConfig(train.sae, train.run).to_dict(), TrainConfig().to_dict()
    for name in PRESETS[DEFAULT_PRESET].keys() - typed:
        assert settings[name] == defaults[name], name
