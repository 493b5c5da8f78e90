"""`vsae bench` where SAE Bench is not installed; with it: tests/sae_bench."""

from dictionary_learning_ext.cli import main


def test_bench_without_its_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("dictionary_learning_ext.commands.bench.find_spec", lambda _: None)
    assert main(["bench", "runs/any"]) == 2
    error = capsys.readouterr().err
    assert ".venv-saebench/bin/pip install -e '.[saebench]'" in error
    assert "pip install 'dictionary-learning-ext" not in error, "it would make this one older"
