"""Runs whose activations or texts define few metrics: what is said, and that every file is JSON."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_sinks import saved_with_sinks

from dictionary_learning_ext import RunConfig, SAEConfig, train
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.errors import LanguageModelError


@pytest.fixture
def run(tiny_lm_dir, text, tmp_path):
    settings = {"model": str(tiny_lm_dir), "data": text, "save_dir": str(tmp_path / "run")}
    sizes = {"steps": 3, "batch_size": 16, "n_ctxs": 4, "ctx_len": 16, "log_steps": 1}
    return lambda **changes: RunConfig(
        **{**settings, **sizes, "eval_tokens": 64, "eval_documents": 16, **changes}
    )


def metrics_of(run: RunConfig) -> dict[str, Any]:
    """Train; the content of metrics.json. Every line of both files must be strict JSON."""
    (folder,) = train(run, {"sae": SAEConfig(dict_size=32, k=4)}).values()

    def strict(text: str) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(text, parse_constant=refuse)

    for line in (folder / "metrics.jsonl").read_text().splitlines():
        strict(line)
    return strict((folder / "metrics.json").read_text())


def changed_model(lm_dir: Path, out: Path, value: float) -> str:
    """A model whose activations are all alike: `value` in every place."""
    lm: Any = load_language_model(str(lm_dir))
    with torch.no_grad():
        for parameter in lm._model.parameters():
            parameter.zero_()
        lm._model.gpt_neox.embed_in.weight.fill_(value)
    lm._model.save_pretrained(out)
    lm.tokenizer.save_pretrained(out)
    return str(out)


def test_activations_that_are_all_0_are_named(run, tiny_lm_dir, tmp_path):
    model = changed_model(tiny_lm_dir, tmp_path / "zeros", 0.0)
    expected = r"all activations of .*zeros at blocks.0.hook_resid_post are 0: expected"
    for normalize in ("sqrt_d", "none"):
        with pytest.raises(LanguageModelError, match=expected):
            train(run(model=model, normalize=normalize), {"sae": SAEConfig(dict_size=32, k=4)})


def test_activations_without_variance_have_no_fve(run, tiny_lm_dir, tmp_path):
    metrics = metrics_of(run(model=changed_model(tiny_lm_dir, tmp_path / "ones", 1.0)))
    assert metrics["fve"] is None
    assert "have no variance" in metrics["not_measured"]["fve"]
    assert "do not change the loss" in metrics["not_measured"]["frac_recovered"]


def test_contexts_of_one_token_have_no_loss(run):
    metrics = metrics_of(run(ctx_len=1, n_ctxs=64))
    assert metrics["fve"] is not None
    assert metrics["loss_original"] is None
    assert "no held-out document has a second token" in metrics["not_measured"]["frac_recovered"]


def test_documents_of_one_token_have_no_loss(run, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 2000)
    metrics = metrics_of(run(data=str(tmp_path / "a.jsonl")))
    assert (metrics["loss_tokens"], metrics["loss_positions"]) == (0, 16)
    assert metrics["frac_recovered"] is None


def test_an_evaluation_on_one_token_measures_what_one_token_defines(run):
    metrics = metrics_of(run(eval_tokens=1))
    assert metrics["tokens"] == 1
    assert metrics["fve"] is None
    assert metrics["frac_recovered"] is not None


def test_sinks_are_named_once_unless_they_are_left_out(run, lm_dir_of, tmp_path, caplog):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "sinks")
    for multiple, expected in ((None, 1), (10.0, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            save_dir = str(tmp_path / f"run{multiple}")
            metrics_of(run(model=model, save_dir=save_dir, max_norm_multiple=multiple))
        said = [text for text in caplog.messages if "position 0 of each context" in text]
        assert len(said) == expected
        assert all("--max-norm-multiple 10 to leave them out" in text for text in said)
