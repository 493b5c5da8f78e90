"""Run folders of one language model: what is opened together, and what is refused."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch as t
from interrupted_runs import sae_of
from planted_sinks import saved_with_sinks
from small_commands import content, refused, setting, trainer

from dictionary_learning_ext import RunConfig, VariationalTopKAutoEncoder, train
from dictionary_learning_ext.activations import inputs
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.errors import CheckpointError, ConfigError
from dictionary_learning_ext.evaluation.folders import evaluate_folders, open_folders
from dictionary_learning_ext.run_folder import comparing, foreign, sae_folder
from dictionary_learning_ext.run_folder.files import CODES, read_json
from dictionary_learning_ext.run_folder.identity import CONTEXTS, MEASURED_ON
from dictionary_learning_ext.run_folder.sae_folder import find_sae, read_metrics

CHANGED = {
    "hook": "blocks.0.hook_resid_post",
    "data": "other.txt",
    "text_packing": "truncate",
    "ctx_len": 16,
    "dtype": "bfloat16",
    "max_norm_multiple": 5.0,
    "remove_bos": True,
}


def test_folders_of_one_setting_are_opened_in_order(trained):
    names = [str(trained / "vsae"), str(trained / "top_k")]
    opened = open_folders(names)
    assert list(opened.saes) == names
    classes = [type(dictionary).__name__ for dictionary in opened.saes.values()]
    assert classes == ["VariationalTopKAutoEncoder", "AutoEncoderTopK"]
    for name, dictionary in opened.saes.items():
        assert opened.folders[name].config["trainer"]["dict_class"] == type(dictionary).__name__
        assert dictionary.activation_dim == opened.hook_point.activation_dim


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda folder: open_folders([]), ConfigError, "run folder"),
        (lambda folder: open_folders(str(folder)), ConfigError, "folders"),
        (lambda folder: evaluate_folders([folder], tokens=0), ConfigError, "tokens=0"),
        (lambda folder: open_folders([folder, folder / "b"]), CheckpointError, "/b"),
    ],
)
def test_mistakes_are_refused_before_the_model_is_loaded(call, error, names, folder, monkeypatch):
    monkeypatch.setattr(
        "dictionary_learning_ext.evaluation.folders.open_inputs",
        lambda *args: pytest.fail("loaded"),
    )
    with pytest.raises(error, match=names):
        call(folder)


def change(folder, **settings):
    """Change the settings of a run, also where the trainer has them."""
    setting(**settings)(folder / "config.json")
    if "hook" in settings:
        trainer(submodule_name=settings["hook"])(folder / "config.json")


@pytest.mark.parametrize("name", CHANGED)
def test_folders_that_were_measured_differently_are_refused(name, trained, folder):
    assert name in MEASURED_ON
    change(folder, **{name: CHANGED[name]})
    measured = evaluate_folders if name in CONTEXTS else open_folders
    with pytest.raises(CheckpointError, match=re.escape(f"{name}={CHANGED[name]!r}")) as caught:
        measured([trained / "top_k", folder])
    assert f"{folder} has " in str(caught.value)


def test_saes_of_two_hook_points_are_each_measured_as_alone_with_one_language_model(
    trained, folder, tmp_path, monkeypatch
):
    def measured(*folders):
        return evaluate_folders(folders, out=tmp_path / "results", tokens=300)

    change(folder, hook=CHANGED["hook"])
    saes = (trained / "top_k", folder)
    alone = [measured(one)[str(one)] for one in saes]
    loaded, load = [], inputs.load_model
    monkeypatch.setattr(inputs, "load_model", lambda *given: loaded.append(1) or load(*given))
    assert list(measured(*saes).values()) == alone
    assert loaded == [1]


def test_saes_that_are_opened_together_are_read_in_the_contexts_of_the_first(
    trained, folder, caplog
):
    other = trained / "top_k"
    setting(ctx_len=16)(folder / "config.json")
    for first, second, ctx_len in ((other, folder, 32), (folder, other, 16)):
        caplog.clear()
        assert open_folders([first, second]).run.ctx_len == ctx_len
        assert f" of {first} (" in caplog.text


def test_saes_with_and_without_a_rule_are_measured_with_the_flag_that_is_named(
    folder, tmp_path, capsys
):
    other = shutil.copytree(folder, tmp_path / "other")
    setting(max_norm_multiple=None, remove_bos=False)(other / "config.json")
    setting(max_norm_multiple=20.0, remove_bos=False)(folder / "config.json")
    for one, two, flag in ((other, folder, "10.0"), (folder, other, "20.0")):
        assert f"; give max_norm_multiple={flag} " in refused(["eval", one, two], capsys)
        rule = {"max_norm_multiple": float(flag)}
        assert open_folders([one, two], **rule).run == replace(open_folders([one]).run, **rule)


@pytest.mark.parametrize(("step", "split"), [(5, "heldout"), (None, "train")])
def test_codes_of_a_checkpoint_or_of_training_text_are_not_kept(step, split, folder):
    (folder / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(folder / "ae.pt", folder / "checkpoints" / "ae_5.pt")
    open_folders([folder], step=step).codes(300, split=split)
    assert not (folder / CODES).exists()
    open_folders([folder]).codes(300)
    assert (folder / CODES).exists()


def rows_of(opened):
    return t.cat([*opened.inputs.held_out(opened.run.hook, 300).batches])


def test_an_sae_that_was_trained_on_all_tokens_is_measured_without_sinks(
    lm_dir_of, folder, tmp_path, caplog
):
    model = saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "lm")
    setting(max_norm_multiple=None, remove_bos=False)(folder / "config.json")
    with caplog.at_level("INFO"):
        opened = open_folders([folder], model=model)
        x = rows_of(opened)
    assert "10 times the median" in caplog.text
    assert float(x.norm(dim=1).max() / x.norm(dim=1).median()) < 10
    everything = open_folders([folder], model=model, max_norm_multiple=1e9)
    x = rows_of(everything)
    assert float(x.norm(dim=1).max() / x.norm(dim=1).median()) > 10


def test_an_sae_of_another_width_than_the_hook_is_refused(folder):
    t.save(VariationalTopKAutoEncoder(8, 32, 4).state_dict(), folder / "ae.pt")
    trainer(activation_dim=8)(folder / "config.json")
    with pytest.raises(CheckpointError, match=f"{folder}: .*8.*16"):
        _ = open_folders([folder]).inputs


@pytest.mark.parametrize("rules", [{}, {"max_norm_multiple": 10.0, "remove_bos": True}], ids=str)
def test_what_training_measured_is_what_eval_measures(rules, lm_dir_of, text, tmp_path):
    """To the bit, whatever the architecture: so training evaluates the SAE that it saves."""
    run = RunConfig(
        model=saved_with_sinks(lm_dir_of("gpt2"), tmp_path / "lm"),
        hook="blocks.1.hook_resid_post",
        data=text,
        save_dir=str(tmp_path / "runs"),
        steps=6,
        batch_size=32,
        n_ctxs=8,
        ctx_len=32,
        eval_tokens=700,
        eval_documents=3,
        **rules,
    )
    saes = {name: sae_of(name) for name in TRAINED}
    folders = {str(folder): read_metrics(folder) for folder in train(run, saes).values()}
    again = evaluate_folders(list(folders), tokens=700)
    for folder, metrics in folders.items():
        assert read_metrics(folder) == again[folder] == metrics
        assert abs(find_sae(folder).config["run"]["norm_factor"] - 1) > 0.1
    alone = {metrics["positions_left_alone"] for metrics in again.values()}
    assert alone == {3}


# --- where an evaluation goes


@pytest.fixture
def evaluated(folder):
    """Evaluates it as asked for, and returns the files that this wrote and all that are there."""

    def evaluate(**asked):
        written = []
        evaluate_folders([folder], on_written=written.append, **asked)
        there = [folder / "metrics.json", *folder.glob("evaluations/*")]
        return written, [path for path in there if path.exists()]

    return evaluate


def test_metrics_json_keeps_the_evaluation_at_the_runs_settings(folder, evaluated, text, tmp_path):
    """Its first is the own one of a run that was trained with --eval-tokens 0."""
    own = folder / "metrics.json"
    assert evaluated(tokens=300) == ([own], [own])
    before = own.read_bytes()
    beside = folder / "evaluations"
    fewer = beside / "tokens_64.json"
    assert evaluated(tokens=64) == ([fewer], [own, fewer])
    other = str(shutil.copy(text, tmp_path / "other text.txt"))
    (path,), _ = evaluated(tokens=300, data=other)
    assert re.fullmatch(r"data_other-text\.txt_[0-9a-f]{6}\.json", path.name)
    assert json.loads(path.read_text())["measured_on"]["data"] == other
    (path,), _ = evaluated(tokens=64, data=other)
    assert path.name.startswith("data_other")
    assert path.name.endswith("_tokens_64.json")
    assert own.read_bytes() == before
    assert json.loads(fewer.read_text())["tokens"] == 64
    assert evaluated(tokens=100_000_000)[0] == [beside / "tokens_2656.json"], "those measured"
    own.write_text(json.dumps(json.loads(before) | {"fve": -1}))
    assert evaluated(tokens=300)[0] == [own], "the same settings: written again"
    assert own.read_bytes() == before
    for damage in (b"{", b"[]"):
        own.write_bytes(damage)
        assert evaluated(tokens=300)[0] == [own]


@pytest.fixture
def upstreams(folder, tiny_lm_dir):
    """The run folder as upstream's `trainSAE` leaves one, and what an evaluation of it is given."""
    for path in folder.iterdir():
        if path.name not in ("ae.pt", "config.json", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["run"]
    config["buffer"].pop("text", None)
    config["trainer"]["submodule_name"] = "resid"
    path.write_text(json.dumps(config))
    hook = f"blocks.{config['trainer']['layer']}.hook_resid_post"
    return folder, {"tokens": 64, "model": str(tiny_lm_dir), "hook": hook}


def test_the_results_of_a_folder_of_upstreams_are_elsewhere(upstreams, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, where = upstreams
    before, written = content(folder), []
    (metrics,) = evaluate_folders([folder], on_written=written.append, **where).values()
    assert written == [find_sae(folder).results / "metrics.json"]
    assert read_metrics(folder)["fve"] == metrics["fve"]
    assert content(folder) == before


def test_a_checkpoint_of_upstreams_too(upstreams, tmp_path):
    folder, where = upstreams
    checkpoint = folder / "checkpoints" / "ae_5.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "ae.pt", checkpoint)
    written = []
    evaluate_folders([folder], step=5, out=tmp_path / "out", on_written=written.append, **where)
    assert written == [
        find_sae(folder).results_in(tmp_path / "out") / "evaluations" / "step_5.json"
    ]


def test_a_folders_config_is_read_once(trained, tmp_path, monkeypatch):
    folder, read = shutil.copytree(trained / "vsae", tmp_path / "vsae"), []

    def reading(path, *given):
        read.append(path.name)
        return read_json(path, *given)

    for module in (sae_folder, comparing, foreign):
        monkeypatch.setattr(module, "read_json", reading)
    evaluate_folders([folder], tokens=64)
    assert read.count("config.json") == 1
