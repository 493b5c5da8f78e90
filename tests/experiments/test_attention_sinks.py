"""The experiment at a tiny size, on a tiny model with planted sinks."""

import json
import shutil

import pytest
from planted_sinks import saved_with_sinks

from experiments.language_models import attention_sinks


def test_sinks_are_left_out_and_left_alone_and_the_rest_resumes(lm_dir_of, tmp_path, monkeypatch):
    words = f"train --lm {saved_with_sinks(lm_dir_of('gpt2'), tmp_path / 'lm')} --layer 1 --tokens 4000 --steps 20 --dict-size 64 --k 8"
    words += f" --eval-tokens 512 --eval-documents 3 --threads 1 --runs {tmp_path / 'runs'}"
    words += f" --raw {tmp_path / 'raw.json'}"
    attention_sinks.STAGES.run(words.split())
    content = json.loads((tmp_path / "raw.json").read_text())
    settings = content["settings"]
    assert settings["sinks"] == settings["tokens"] / attention_sinks.CTX_LEN
    assert [row["name"] for row in content["rows"]] == [
        "TopK, all tokens",
        "recommended, all tokens",
        "TopK, no sinks",
        "recommended, no sinks",
    ]
    for row in content["rows"]:
        assert row["all"]["positions_left_alone"] == 0
        assert row["left_alone"]["positions_left_alone"] == 3, "one per document"
        assert row["left_alone"]["fve"] != row["all"]["fve"]
    assert all(norm["far_at_0"] == 1 for norm in content["norms"])
    page = (tmp_path / "raw.md").read_text()
    assert "| recommended, trained on no sinks | " in page
    assert "Layer 0, where [full_size.md](full_size.md) trains, has such tokens" in page

    def again(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(attention_sinks, "train_one", again)
    attention_sinks.STAGES.run(words.split())
    assert json.loads((tmp_path / "raw.json").read_text())["rows"] == content["rows"]
    other_lm = shutil.copytree(tmp_path / "lm", tmp_path / "other" / "lm")
    for flag in ("--layer 0", "--steps 21", "--dict-size 65", "--k 9", f"--lm {other_lm}"):
        with pytest.raises(AssertionError, match="trained again"):
            attention_sinks.STAGES.run([*words.split(), *flag.split()])


@pytest.mark.parametrize("model", attention_sinks.MODELS)
def test_both_models_have_one_size_and_schedule(model):
    arguments = attention_sinks.STAGES.parse(["train"])
    config = attention_sinks.config_of(model, 576, arguments)
    assert (config.k, config.dict_size, config.lr) == (64, 2304, 1e-3)
    assert config.decay_start == 600
    assert config.architecture == {"TopK": "top_k"}.get(model, "vsae_top_k")
