"""`vsae hooks` lists exactly the names that `--hook` takes, without loading weights."""

import pytest
from small_commands import refused

from dictionary_learning_ext.activations.hook_points import find_hook
from dictionary_learning_ext.cli import main

KINDS = ("resid_post", "resid_pre", "attn_out", "mlp_out")


@pytest.mark.parametrize(
    "family", ["gpt_neox", "llama", "gpt2", "gemma", "gemma3", "qwen", "qwen3"]
)
def test_the_names_are_those_that_can_be_read(family, lm_dir_of, lm_of, tmp_path, capsys):
    assert main(["hooks", "--model", str(lm_dir_of(family))]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["hook", "point", "width"]
    names = [line.split()[0] for line in lines]
    assert len(names) == len(set(names)) == 4 * 3
    assert names[:4] == [f"blocks.0.hook_{kind}" for kind in KINDS]
    for line in lines:
        name, width = line.split()
        assert find_hook(lm_of(family), name).activation_dim == int(width)


def test_no_weights_are_needed(lm_dir_of, tmp_path, capsys):
    config = (lm_dir_of("gpt2") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    assert main(["hooks", f"--model={tmp_path}"]) == 0
    assert "blocks.2.hook_resid_post" in capsys.readouterr().out


def test_a_model_that_is_not_there(tmp_path, capsys):
    assert "save_pretrained" in refused(["hooks", f"--model={tmp_path}"], capsys)
