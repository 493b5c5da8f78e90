"""The word none after a flag, which is typed in any case."""

import pytest

from dictionary_learning_ext.commands import evaluate, report, sweep, train
from dictionary_learning_ext.commands.flags import parse
from dictionary_learning_ext.errors import UserError

NONES = ["none", "None", "NONE"]


@pytest.mark.parametrize("none", NONES)
def test_none_is_taken_in_any_case_wherever_a_flag_may_be_none(none):
    """The preset that training starts from has a number for these three."""
    args = ["--noise-anneal-steps", none, f"--max_norm_multiple={none}", "--decay-start", none]
    flags = parse(train.COMMAND, args)
    found = (flags.sae.noise_anneal_steps, flags.run.max_norm_multiple, flags.sae.decay_start)
    assert found == (None, None, None)
    assert parse(evaluate.COMMAND, ["run", "--tokens", none]).tokens is None
    assert parse(sweep.COMMAND, [f"--at-once={none}"]).at_once is None


@pytest.mark.parametrize("none", NONES)
def test_none_rules_out_nothing_before_the_settings_are_checked(none):
    """A posterior that is none is the architecture's, not a fourth one."""
    assert parse(train.COMMAND, ["--posterior", none]).sae.noise_on == "selection"


@pytest.mark.parametrize("none", NONES)
def test_none_is_a_value_of_its_own_where_a_flag_says_so(none):
    run = parse(train.COMMAND, ["--normalize", none, "--save-every", none, "--sigma", "1"]).run
    assert (run.normalize, run.save_every) == ("none", "none")
    assert parse(train.COMMAND, ["--save-steps", none]).run.save_steps == "none"
    assert parse(report.COMMAND, ["run", "--activations", none]).inputs.activations == "none"


def test_a_folder_or_a_text_may_be_called_none():
    assert parse(evaluate.COMMAND, ["none"]).folders == ("none",)
    assert parse(train.COMMAND, ["--data", "none"]).run.data == "none"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--noise-anneal-steps", "no"], "no: expected a whole number, or none (see"),
        (["--noise-anneal-steps"], ": expected a whole number, or none after it (see"),
        (["--lr", "small"], "small: expected a finite number, or none (see"),
        (["--steps", "none"], "none: expected a whole number (see"),
        (["--text-packing", "None"], "None: expected one of pack, truncate (see"),
    ],
)
def test_an_error_says_whether_none_is_possible(args, message):
    with pytest.raises(UserError) as refused:
        parse(train.COMMAND, args)
    assert str(refused.value).startswith(f"{args[0]}{'' if message[0] == ':' else ' '}{message}")
