"""Runs that are stopped, killed or changed, and resumed, bit-identical to runs that were not; and runs
that start from a trained SAE."""

import gc
import json
import re
import shlex
import shutil
import signal
import weakref
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch as t
import transformers
from forks import ended, forked, wait_for
from interrupted_runs import (
    STEPS,
    Killed,
    assert_equal,
    interrupt,
    results,
    resumed,
    sae_of,
    stopped_at,
    written,
)
from language_model_reads import half_on_disk
from safetensors.torch import save_file
from small_commands import refused
from small_trainers import built

from dictionary_learning_ext import load_dictionary, train
from dictionary_learning_ext.activations.buffer import ResidualBuffer
from dictionary_learning_ext.activations.inputs import open_inputs
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.config.architectures import TRAINED
from dictionary_learning_ext.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LanguageModelError,
    TextError,
)
from dictionary_learning_ext.run_folder.reading import load_config, read_history, read_run
from dictionary_learning_ext.run_folder.resume_points import ResumePoint, steps_of
from dictionary_learning_ext.training import loop, resuming
from dictionary_learning_ext.training.sae_run import SAERun

MORE = {
    "annealed": {"noise_anneal_steps": 48, "posterior": "learned"},
    "point": {"posterior": "point"},
    "magnitude": {"select_by": "magnitude"},
    "from_data": {"start": "data"},
}
"""Options of vsae_top_k that are tested beside every architecture."""


@pytest.mark.slow
def test_stopped_saes_end_as_if_they_had_not_been_stopped(run, tmp_path, monkeypatch):
    """In one run, as company changes nothing (test_loop.py). Also with another order of the text, from the
    second fill on."""
    saes = {}
    for name, options in ({each: {} for each in TRAINED} | MORE).items():
        architecture = "vsae_top_k" if name in MORE else name
        saes[name] = sae_of(architecture, **options)
    run, base = replace(run, data_seed=3), Path(run.save_dir)
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), saes)
    for step in (23, 42):  # a step is logged at 42
        stopped_at(step, monkeypatch)
        with pytest.raises(Interrupted, match=rf"SIGINT at step {step}; .*--resume {base}"):
            resumed(base) if step == 42 else train(run, saes)
        assert {steps_of(base / name)[-1] for name in saes} == {step}
    resumed(base)
    for name in saes:
        assert_equal(results(whole[name]), results(base / name), name)
        assert steps_of(base / name) == [50, STEPS]


def test_a_run_whose_language_model_is_half_on_the_disk_resumes_and_ends_as_one_that_is_whole(
    run, tmp_path, monkeypatch
):
    run = replace(run, model="embedded", data="embedded", hook="blocks.1.hook_resid_post")
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()})["x"]
    stopped_at(23, monkeypatch)
    with pytest.raises(Interrupted):
        train(replace(run, device_map=half_on_disk()), {"x": sae_of()})
    (folder,) = resumed(run.save_dir).values()
    assert load_config(folder).run.device_map == half_on_disk()
    assert_equal(results(whole), results(folder), "on the disk")


def test_what_a_run_starts_from_is_freed_before_the_first_step(run, tmp_path, monkeypatch):
    """The points, and the SAE of init_from."""
    saes = {name: sae_of(name) for name in ("vsae_top_k", "top_k")}  # two optimisers
    run, seen = replace(run, eval_tokens=0, steps=30), []
    former = train(replace(run, save_dir=str(tmp_path / "former")), saes)
    original, load = SAERun.update, loop.trained_sae

    def first_update(self, step, x_BD):
        gc.collect()
        points = [each for each in gc.get_objects() if type(each) is ResumePoint and each.trainer]
        seen.append((len(points), [each() is None for each in sources]))
        monkeypatch.setattr(SAERun, "update", original)
        original(self, step, x_BD)

    def trained_sae(sae):
        source = load(sae)
        sources.append(weakref.ref(source))
        return source

    sources = []
    monkeypatch.setattr(loop, "trained_sae", trained_sae)
    stopped_at(23, monkeypatch)
    started = {n: replace(sae, init_from=str(former[n])) for n, sae in saes.items()}
    with pytest.raises(Interrupted):
        train(run, started)
    monkeypatch.setattr(SAERun, "update", first_update)
    resumed(run.save_dir)
    monkeypatch.setattr(SAERun, "update", first_update)
    train(replace(run, steps=1, overwrite=True), started)
    assert seen == [(0, [True] * 2), (0, [True] * 4)]


@pytest.mark.slow
def test_a_shared_run_resumes_as_a_whole_or_one_of_it_alone(run, tmp_path, monkeypatch):
    saes = {"a": sae_of(), "b": sae_of("top_k")}
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), saes)
    stopped_at(33, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, saes)
    base = Path(run.save_dir)
    resumed(base / "b")
    assert_equal(results(whole["b"]), results(base / "b"))
    assert steps_of(base / "a")[-1] == 33
    resumed(base / "a")
    assert_equal(results(whole["a"]), results(base / "a"))


def test_a_finished_run_is_left_alone(run, caplog):
    caplog.set_level("INFO", "dictionary_learning_ext")
    (folder,) = train(run, {"x": sae_of()}).values()
    before = (folder / "ae.pt").stat().st_mtime_ns
    assert resumed(folder) == {"run": folder}
    assert "already finished" in caplog.text
    assert (folder / "ae.pt").stat().st_mtime_ns == before


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def advised(command, capsys):
    """Type the command that the refusal of another one ends with."""
    *_, advice = re.findall("`vsae (.*?)`", refused(command, capsys))
    assert main(shlex.split(advice)) == 0


def test_a_run_whose_points_are_all_damaged_is_trained_from_scratch_as_it_says(
    run, tmp_path, monkeypatch, capsys
):
    whole = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()})["x"]
    stopped_at(33, monkeypatch)
    with pytest.raises(Interrupted):
        train(run, {"x": sae_of()})
    for point in Path(run.save_dir).glob("resume/step_*.pt"):
        cut_off(point)
    advised(["train", "--resume", run.save_dir], capsys)
    assert_equal(results(whole), results(Path(run.save_dir)))


@pytest.mark.parametrize("is_there", [True, False], ids=["cut off", "deleted"])
def test_weights_that_are_damaged_or_gone_are_written_again_from_the_last_point(
    is_there, run, capsys
):
    (folder,) = train(run, {"x": sae_of()}).values()
    before = results(folder)
    weights = folder / "ae.pt"
    if is_there:
        cut_off(weights)
        for command in (["train", "--resume"], ["eval"]):
            assert "delete it" in refused([*command, folder], capsys)
    weights.unlink()
    advised(["eval", folder], capsys)
    assert_equal(before, results(folder))


def test_versions_that_differ_are_named_and_no_others(caplog):
    hashes = {"language_model": "a", "tokenizer": "b"}
    point = SimpleNamespace(hashes=hashes, versions={"torch": "1", "numpy": "2"})
    now = {"torch": "1", "numpy": "3"}
    resuming.require_same_inputs({Path("x"): point}, "a model", hashes, now)
    assert "numpy was 2, is 3" in caplog.text
    assert "torch" not in caplog.text


def test_another_gpu_is_the_same_kind_of_device():
    point = SimpleNamespace(settings={"device": "cuda:0"})
    assert not resuming.has_moved(point, "cuda:1")
    assert resuming.has_moved(point, "cpu")


def test_another_language_model_is_noticed(stopped, lm_dir_of, tmp_path):
    folder = Path(load_config(stopped).run.model)
    keep = shutil.copytree(folder, tmp_path / "keep")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with t.no_grad():
            next(model.parameters())[0, 0] += 1e-3
        model.save_pretrained(folder)
        with pytest.raises(LanguageModelError, match="has changed"):
            resumed(stopped)
    finally:
        shutil.copytree(keep, folder, dirs_exist_ok=True)
    resumed(stopped)


def test_an_edited_setting_is_told_with_its_former_value(stopped):
    """What the weights say of it, too."""
    path = stopped / "config.json"
    path.write_text(path.read_text().replace('"k": 4', '"k": 5'))
    with pytest.raises(
        ConfigError, match=r"k=4, not 5; continue it with k=4 \(if you edited config"
    ):
        resumed(stopped)
    path.write_text(path.read_text().replace('"k": 5', '"k": 4'))
    resumed(stopped)
    path.write_text(path.read_text().replace('"k": 4', '"k": 5'))
    with pytest.raises(CheckpointError, match="set k=4 again"):
        load_dictionary(stopped)


def test_a_changed_text_is_noticed(stopped):
    path = Path(load_config(stopped).run.data)
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-999] + before[-999:].replace(b"cat", b"cow"))
        with pytest.raises(TextError, match="has changed"):
            resumed(stopped)
    finally:
        path.write_bytes(before)


def test_a_run_resumes_where_its_text_has_moved(run, tmp_path, monkeypatch, capsys):
    there = tmp_path / "before"
    there.mkdir()
    run = replace(run, data=shutil.copy(run.data, there))
    train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()})
    interrupt(run, monkeypatch)
    there.rename(tmp_path / "after")
    command = ["train", "--resume", run.save_dir]
    assert "no such file" in refused(command, capsys)
    moved = str(tmp_path / "after" / Path(run.data).name)
    assert main([*command, "--data", moved]) == 0
    assert load_config(run.save_dir).run.data == moved, "so that it is found later"
    found, whole = results(Path(run.save_dir)), results(tmp_path / "whole")
    for name in ("weights", "trainer", "log"):
        assert_equal(found[name], whole[name])


@pytest.mark.parametrize("left", [None, 1.5])
def test_a_log_that_was_deleted_or_cut_off_goes_on_where_the_run_resumes(stopped, left):
    """To delete it is what is said of a damaged one."""
    log = stopped / "metrics.jsonl"
    first = len(log.read_bytes().splitlines(keepends=True)[0])
    if left is None:
        log.unlink()
    else:
        log.write_bytes(log.read_bytes()[: int(left * first)])
    resumed(stopped)
    steps = [row["step"] for row in read_history(stopped)]
    kept = [] if left is None else [0]
    assert steps == kept + [step for step in [*range(0, STEPS, 7), STEPS] if step >= 15]


def test_lines_logged_after_the_point_are_cut_off(stopped):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "fve": 9}\n{"step": 2')
    resumed(stopped)
    rows = read_history(stopped)
    assert [row["step"] for row in rows] == [*range(0, STEPS, 7), STEPS]
    assert all(row.get("fve") != 9 for row in rows)


def test_a_text_that_ended_goes_on_with_another_pass(run, tmp_path, text):
    short = tmp_path / "short.txt"
    short.write_text(Path(text).read_text()[:6_000])
    one = replace(run, data=str(short), save_every="none", eval_tokens=0, text_passes=1)
    with pytest.raises(TextError, match=r"ended.*text_passes"):
        train(one, {"x": sae_of()})
    (step,) = steps_of(Path(run.save_dir))
    former, saes, hooks = read_run(Path(run.save_dir))
    train(replace(former, text_passes=9), saes, hooks, resume=True)
    assert 0 < step < STEPS
    assert [row["step"] for row in read_history(Path(run.save_dir))] == [*range(0, STEPS, 7), STEPS]


def test_an_error_in_the_middle_of_a_step_leaves_no_point_of_it(run, tmp_path, monkeypatch):
    """Its batch was handed out and not trained on: a resume there would leave it out."""
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()
    original = ResidualBuffer.__next__

    class NoRoom:
        def to(self, *_):
            raise RuntimeError("out of memory")

    def handed_out(self):
        x_BD = original(self)
        return NoRoom() if self.tokens_seen == 25 * self.out_batch_size else x_BD

    monkeypatch.setattr(ResidualBuffer, "__next__", handed_out)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(run, {"x": sae_of()})
    monkeypatch.undo()
    assert steps_of(Path(run.save_dir))[-1] == 20
    resumed(run.save_dir)
    one, other = results(whole), results(Path(run.save_dir))
    assert "ae_24.pt" in other.pop("checkpoints")
    one.pop("checkpoints")
    assert_equal(one, other)


def test_a_run_that_ended_before_its_first_point_starts_from_scratch(
    run, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "dictionary_learning_ext")
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), {"x": sae_of()}).values()

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dictionary_learning_ext.run_folder.resume_points.save_point", dies)
        with pytest.raises(Killed):
            train(run, {"x": sae_of()})
    with pytest.raises(ConfigError, match=re.escape(run.save_dir)):
        train(run, {"x": sae_of()})
    other = shutil.copy(run.data, tmp_path / "other.txt")
    with pytest.raises(ConfigError, match=r"other\.txt"):
        train(replace(run, data=other), {"x": sae_of()}, resume=True)
    resumed(run.save_dir)
    assert "no resume point" in caplog.text
    assert_equal(results(whole), results(Path(run.save_dir)))


def test_an_sae_without_a_folder_yet_is_begun(run, monkeypatch):
    """As after a kill between the first files of two SAEs."""
    saes = {"a": sae_of(), "b": sae_of("top_k")}

    def dies(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("dictionary_learning_ext.run_folder.resume_points.save_point", dies)
        with pytest.raises(Killed):
            train(run, saes)
    shutil.rmtree(Path(run.save_dir, "b"))
    folders = train(run, saes, resume=True)
    assert all((folder / "metrics.json").is_file() for folder in folders.values())


def child(run, saes, ends):
    """A run in a process of its own, as `train` in a script. Unless it `ends`, it waits for a kill before its evaluation."""
    t.set_num_threads(2)
    if not ends:
        loop.Run._evaluate = lambda _: signal.pause()
    train(run, saes, resume=Path(run.save_dir, "config.json").exists())


@pytest.mark.slow
def test_kills_change_nothing(run, tmp_path):
    """kill -9 after some lines of its log; a complete point is there from the first on."""
    saes = {"x": sae_of()}
    (whole,) = train(replace(run, save_dir=str(tmp_path / "whole")), saes).values()
    folder, printed = Path(run.save_dir), tmp_path / "printed"
    points = []
    for lines in (1, 3, 6):
        process = forked(child, run, saes, False, printed=printed)
        wait_for(lambda lines=lines: written(folder) >= lines, process)
        process.kill()
        assert ended(process) == [-signal.SIGKILL], printed.read_text()
        points = [bool(steps_of(folder)), *points]
        assert points == sorted(points, reverse=True), (
            "once there is a complete point, there is one"
        )
    assert any(points)
    assert ended(forked(child, run, saes, True, printed=printed)) == [0]
    assert_equal(results(whole), results(folder))


# --- from a trained SAE

ARCHITECTURES = [name for name in TRAINED if name != "vsae"]


@pytest.fixture
def short(run):
    return replace(run, steps=12, eval_tokens=0, save_every="none")


@pytest.fixture
def trained(short, tmp_path):
    """Trains an SAE and returns its folder."""

    def folder(architecture="vsae_top_k", **changes):
        place = str(tmp_path / f"source_{architecture}")
        return train(replace(short, save_dir=place), {"x": sae_of(architecture, **changes)})["x"]

    return folder


def first_batch(run):
    """The first batch of a run at its hook point, raw."""
    return open_inputs(run, [run.hook]).training_batches().next()[run.hook]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_step_sees_the_trained_sae_and_takes_nothing_from_it(
    architecture, short, trained, tmp_path
):
    source = trained(architecture)
    # Other units than the source's training had, and a learning rate that changes no weight.
    run = replace(short, steps=3, normalize="unit", save_dir=str(tmp_path / "run"), log_steps=1)
    sae = sae_of(architecture, init_from=str(source), lr=1e-30, seed=1)
    (folder,) = train(run, {"x": sae}).values()
    was, now = load_dictionary(source)[0], load_dictionary(folder)[0]
    for (name, old), new in zip(was.named_parameters(), now.parameters(), strict=True):
        t.testing.assert_close(new, old, rtol=1e-4, atol=1e-5, msg=name)
    x = first_batch(run)
    if "batch" not in architecture and architecture != "matryoshka":  # those keep a batch's largest
        fve = 1 - (x - now(x)).square().sum() / (x - x.mean(0)).square().sum()
        assert read_history(folder)[0]["fve"] == pytest.approx(float(fve), abs=1e-4)


@pytest.mark.parametrize(
    ("source", "other", "options"),
    [
        ("top_k", "vsae_top_k", {"posterior": "learned"}),
        ("vsae_top_k", "top_k", {}),
        ("vsae_top_k", "vsae_top_k", {"posterior": "learned"}),
    ],
)
def test_all_weights_that_both_have_are_taken(source, other, options, short, trained, tmp_path):
    first = trained(source, **(options if source == other else {}))
    run = replace(short, steps=1, save_dir=str(tmp_path / "run"))
    sae = sae_of(other, init_from=str(first), lr=1e-30, **options)
    (folder,) = train(run, {"x": sae}).values()
    now, was = load_dictionary(folder)[0], load_dictionary(first)[0]
    weights = dict(was.named_parameters())
    assert len(weights) == (6 if source == other else 4), "those of the log-variance too"
    for name, value in now.named_parameters():
        if name in weights:
            t.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)
    assert was.threshold > 0
    t.testing.assert_close(now.threshold, was.threshold, rtol=1e-4, atol=1e-5)
    if source == other:
        x = first_batch(run)
        t.testing.assert_close(now.log_var(x), was.log_var(x), rtol=1e-4, atol=1e-4)
        assert was.log_var_encoder.weight.abs().max() > 0


def test_another_class_that_fits_has_every_weight_that_is_needed():
    saes = {name: built(name).ae for name in ARCHITECTURES}
    fits = [
        (name, other)
        for name, other in permutations(ARCHITECTURES, 2)
        if type(saes[other]) is not type(saes[name])
        and type(saes[other]).__name__ in resuming._classes_to_start_from(name)
    ]
    assert {("top_k", "vsae_top_k"), ("vsae_top_k", "top_k")} <= set(fits)
    for name, other in fits:
        needed = {weight for weight, _ in saes[name].named_parameters()}
        assert needed <= saes[other].state_dict().keys(), (name, other)


def test_it_is_recorded_and_resumes_without_the_source(short, trained, tmp_path, monkeypatch):
    source = trained()
    run = replace(short, save_every="100")
    sae = sae_of(init_from=str(source))
    uninterrupted = train(replace(run, save_dir=str(tmp_path / "a")), {"x": sae})["x"]
    assert load_config(uninterrupted).sae.init_from == str(source)
    b = replace(run, save_dir=str(tmp_path / "b"))
    stopped_at(5, monkeypatch)
    with pytest.raises(Interrupted):
        train(b, {"x": sae})
    shutil.rmtree(source)
    resumed(tmp_path / "b")
    states = [load_dictionary(tmp_path / name)[0].state_dict() for name in "ab"]
    assert all(t.equal(states[0][name], states[1][name]) for name in states[0])


def test_stopped_before_its_first_step_it_still_leaves_b_dec_alone(
    short, trained, tmp_path, monkeypatch
):
    source = trained()
    run = replace(short, steps=2, save_dir=str(tmp_path / "b"))
    sae = sae_of(init_from=str(source), lr=1e-30)

    def stop(*_):
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SAERun, "check_and_log", stop)
        with pytest.raises(Interrupted):
            train(run, {"x": sae})
    (folder,) = resumed(tmp_path / "b").values()
    now, was = (load_dictionary(each)[0].b_dec for each in (folder, source))
    t.testing.assert_close(now, was, rtol=1e-4, atol=1e-5)


def test_what_it_starts_from_is_not_overwritten(short, trained):
    source = trained()
    run = replace(short, save_dir=str(source), overwrite=True)
    with pytest.raises(ConfigError, match=re.escape(str(source))):
        train(run, {"x": sae_of(init_from=str(source))})
    load_dictionary(source)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ({}, {"dict_size": 64}, "dict_size=64, not 32"),
        ({}, {"k": 8}, "k=8, not 4"),
        ({}, {"architecture": "vsae"}, "k=32, not 4"),
        ({}, {"architecture": "relu"}, "=AutoEncoder, not VariationalTopKAutoEncoder"),
    ],
)
def test_what_may_not_differ_is_named_with_both_values(
    source, given, message, short, trained, tmp_path
):
    folder = trained(**source)
    sae = sae_of(**{"init_from": str(folder)} | given)
    with pytest.raises(ConfigError) as raised:
        train(replace(short, save_dir=str(tmp_path / "run")), {"x": sae})
    assert str(raised.value).startswith(f"init_from={str(folder)!r}: ")
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_saelens_is_a_start(short, trained, tmp_path):
    """What SAELens itself writes is read in tests/run_folder/test_foreign.py."""
    source = load_dictionary(trained("top_k"))[0]
    folder = tmp_path / "sae_lens"
    folder.mkdir()
    weights = {
        "W_enc": source.encoder.weight.T,
        "b_enc": source.encoder.bias,
        "W_dec": source.decoder.weight.T,
        "b_dec": source.b_dec,
    }
    save_file({n: v.contiguous() for n, v in weights.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": 4}))
    run = replace(short, steps=1, save_dir=str(tmp_path / "run"))
    for architecture in ("top_k", "vsae_top_k"):
        sae = sae_of(architecture, init_from=str(folder), lr=1e-30)
        (now,) = train(replace(run, overwrite=True), {"x": sae}).values()
        b_dec = load_dictionary(now)[0].b_dec
        t.testing.assert_close(b_dec, source.b_dec, rtol=1e-4, atol=1e-5)
