"""What each command costs, counted: tokens that each SAE encodes, loads of each SAE, passes and loads of the language
model. A second command about the same SAE and text encodes nothing, and loads the language model only for what codes
don't say."""

import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
import transformers
from kept import kept
from language_model_reads import counted_passes
from report_runs import train
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dictionary_learning_ext import features_of
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.codes.encoding import SparseDecoder
from dictionary_learning_ext.run_folder import sae_folder, weights
from dictionary_learning_ext.run_folder.sae_folder import SAEFolder

DICT_SIZE = 128
"""No matrix of the language model has this size."""
TOKENS = 2_000
CONTEXTS = 64
"""Read for them: 63 of 32 tokens, in groups of 16."""
TRAINING_CONTEXTS = 1_280
"""Read for 40,000 training tokens, of which the dictionaries of random tokens are made: 1,250 of 32, in groups of 64."""
EVALUATED = 200
"""Tokens of the final evaluation."""


@dataclass
class Counts:
    encoded: Counter = field(default_factory=Counter)
    """Tokens, by the first weight of the SAE."""
    decoded: int = 0
    """Tokens, from the selections alone."""
    dense: int = 0
    """Tokens, from all features."""
    found: list = field(default_factory=list)
    """The folders whose config.json is read."""
    identified: list = field(default_factory=list)
    """Those of which it is worked out what they were trained as."""
    loaded: list = field(default_factory=list)
    """The folders of the SAEs."""
    contexts: list = field(default_factory=list)
    """How many each pass of the language model reads."""
    models: int = 0
    """Loads of the language model."""


@contextmanager
def counted():
    found = Counts()

    def called(module, args):
        if not isinstance(module, nn.Linear) or args[0].dim() == 3:  # the language model's loss
            return
        if (rows := len(args[0])) == 1:  # of zeros: for the bias, and for whether there is noise
            return
        if module.out_features == DICT_SIZE:
            found.encoded[float(module.weight[0, 0])] += rows
        elif module.in_features == DICT_SIZE:
            found.dense += rows

    decode, read, config_in = SparseDecoder.decode, weights.read_state_dict, sae_folder._config_in
    trained_as = SAEFolder.trained_as.func
    load = transformers.AutoModelForCausalLM.from_pretrained

    def decoded(self, block):
        found.decoded += len(block.x_nD)
        return decode(self, block)

    def of_file(path, *args):
        found.loaded.append(path.parent.name)
        return read(path, *args)

    def of_config(path):
        found.found.append(path.name)
        return config_in(path)

    def of_training(sae):
        found.identified.append(sae.path.name)
        return trained_as(sae)

    def model(*args, **options):
        found.models += 1
        return load(*args, **options)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(SparseDecoder, "decode", decoded)
        patch.setattr(weights, "read_state_dict", of_file)
        patch.setattr(sae_folder, "_config_in", of_config)
        patch.setattr(SAEFolder.trained_as, "func", of_training)
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
        found.contexts = stack.enter_context(counted_passes())
        stack.callback(register_module_forward_pre_hook(called).remove)
        yield found


@pytest.fixture
def two(tiny_lm_dir, text, tmp_path):
    """Two seeds of one small SAE whose features fire rarely."""

    def make(folder):
        for n in range(2):
            flags = f"--dict-size {DICT_SIZE} --k 2 --beta 0.03 --seed {n} --data-seed {n}".split()
            train(tiny_lm_dir, text, folder / f"seed{n}", *flags)

    shutil.copytree(kept("encoded_once", make), tmp_path / "runs")
    return [str(tmp_path / "runs" / f"seed{n}") for n in range(2)]


def command(*given):
    def run(saes):
        of = {"A": saes[0], "B": saes[1]}
        return main([*(of.get(one, one) for one in given), "--tokens", str(TOKENS)])

    return run


def in_python(saes):
    return len(features_of(saes[0], tokens=TOKENS).search("the")) < 0


@dataclass
class Cost:
    """What a command needs beside encoding once."""

    run: Callable
    saes: int = 1
    decodes: int = 1
    """How often each token is decoded."""
    model_again: bool = False
    """Whether the second one loads the language model, too."""
    random_tokens: bool = False
    """Whether the first one compares with random tokens: it reads training tokens, and the text again."""
    loss: list = field(default_factory=list)
    """Contexts in each pass that measures the language model's loss, on documents."""


COSTS = {
    # decodes a sample, too; the loss is the model's own, with reconstructions and with zeros
    "eval": Cost(command("eval", "A"), decodes=2, model_again=True, loss=[3, 3, 3]),
    "reproduce": Cost(command("reproduce", "A")),
    "reproduce two": Cost(command("reproduce", "A", "B"), saes=2, random_tokens=True),
    # effects on logits are measured by the language model's unembedding
    "report": Cost(command("report", "A"), model_again=True),
    "report seeds": Cost(
        command("report", "A", "--seeds", "B"),
        saes=2,
        model_again=True,
        random_tokens=True,
    ),
    "features_of": Cost(in_python),
}


@pytest.mark.parametrize("name", COSTS)
def test_each_token_is_encoded_once_and_by_a_second_command_not_at_all(name, two):
    cost = COSTS[name]
    with counted() as first:
        assert not cost.run(two)
    names = [f"seed{n}" for n in range(cost.saes)]
    encoded, others = [*first.encoded.values()][: cost.saes], 2 * cost.random_tokens
    assert encoded == [TOKENS] * cost.saes
    assert len(first.encoded) == cost.saes + others
    assert first.decoded == TOKENS * (cost.saes * cost.decodes + others)
    assert first.loaded == first.found == names
    assert first.identified in ([], names)
    assert first.models == 1
    more = CONTEXTS + TRAINING_CONTEXTS if cost.random_tokens else 0
    assert sum(first.contexts) == CONTEXTS + sum(cost.loss) + more
    with counted() as again:
        assert not cost.run(two)
    assert not again.encoded
    assert again.decoded == 0
    assert again.loaded == names
    assert again.models == int(cost.model_again)
    assert again.contexts == cost.loss
    assert first.dense == again.dense == 0


def test_what_the_final_evaluation_encoded_is_not_encoded_again(two):
    with counted() as found:
        assert main(["reproduce", *two]) == 0
    assert [*found.encoded.values()] == [40_000 + EVALUATED] * 2, "random tokens alone"
    assert found.decoded == 2 * EVALUATED
