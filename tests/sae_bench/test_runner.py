"""`vsae bench` on small SAEs, in SAE Bench's real code: results, what is repeated, failures, mistakes."""

import json
import re
import shlex
import shutil
from pathlib import Path

import datasets
import pytest
import torch as t
import transformers
from bench_saes import FLAGS, FOUR, PLACE, SMALL, D, result_in
from texts import write_jsonl

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.errors import BenchError
from dictionary_learning_ext.run_folder.sae_folder import find_sae
from dictionary_learning_ext.run_folder.trained_on import trained_on

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

from sae_bench.custom_saes.identity_sae import IdentitySAE  # pyright: ignore[reportMissingImports]
from sae_bench.sae_bench_utils import graphing_utils  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.sae_bench import adapter, evaluations, runner
from dictionary_learning_ext.sae_bench import data as bench_data
from dictionary_learning_ext.sae_bench.results import curve
from dictionary_learning_ext.sae_bench.runner import bench

pytestmark = pytest.mark.extra


def test_every_result_is_in_sae_benchs_schema_and_where_it_looks(benched, trained):
    assert benched.failures == {}
    for name, folder in trained.items():
        for evaluation in FOUR:
            path = folder / "eval_results" / evaluation / f"{name}_custom_sae_eval_results.json"
            assert result_in(path, evaluation) == benched.results[name][evaluation]
    files = graphing_utils.find_eval_results_files([str(trained["vsae"] / "eval_results")])
    read = graphing_utils.get_eval_results([f for f in files if "/core/" in f])
    assert read["vsae_custom_sae"]["sae_class"] == "vsae_fixed_values"
    assert "vsae_fixed_values" in graphing_utils.TRAINER_COLORS


def test_n_is_at_most_a_tenth_of_the_dictionary(benched, one, books):
    found = benched.results["vsae"]
    assert found["tpp"]["eval_result_unstructured"].keys() > {"vsae_bench_key"}, "its classes"
    assert found["scr"]["eval_config"]["n_values"] == [2, 5]
    assert list(curve(found["tpp"], "total_metric")) == [2, 5]
    with pytest.raises(BenchError, match=f"{D} features: expected 20"):
        bench([one], evals=["tpp"], extra={"id": identity()}, **SMALL | {"data": books})


def test_what_is_finished_is_not_repeated_unless_it_changed(one, caplog, monkeypatch):
    def ran():
        outcome = bench([one], evals=["core"], **SMALL)
        assert outcome.failures == {}
        return outcome.results["one"]["core"]["eval_id"]

    first = ran()
    assert ran() == first
    path = next(one.glob("eval_results/core/*.json"))
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    second = ran()
    assert second != first, "half a file is no result"
    state = t.load(one / "ae.pt", weights_only=True)
    state["b_dec"] += 0.1
    t.save(state, one / "ae.pt")
    third = ran()
    assert third != second, "of another SAE"
    assert "another SAE" in caplog.text
    monkeypatch.setattr(runner, "shown_in", lambda _: [])
    assert ran() != third, "our metrics are defined otherwise"
    outcome = bench([one], evals=["core"], again=True, **SMALL)
    assert outcome.results["one"]["core"]["eval_id"] not in (first, second)


def test_folders_of_one_name_are_told_apart_and_results_are_found_in_any_company(one, tmp_path):
    twins = [tmp_path / seed / "blocks.0" / "top_k" for seed in ("s0", "s1")]
    for folder in twins:
        shutil.copytree(one, folder)
    alone = bench(twins[:1], evals=["core"], **SMALL)
    together = bench(twins, evals=["core"], **SMALL)
    labels = [str(folder.relative_to(tmp_path)) for folder in twins]
    assert list(together.results) == labels
    assert together.results[labels[0]] == alone.results["top_k"], "not repeated"
    for folder in twins:
        (path,) = folder.glob("eval_results/core/*")
        assert path.name == "top_k_custom_sae_eval_results.json"


def test_a_failure_says_why_and_does_not_stop_the_others(one, capsys, monkeypatch):
    def broken(*_, **__):
        print("what SAE Bench prints")
        raise IndexError("no features\nfound")

    monkeypatch.setattr(evaluations.absorption, "run_eval", broken)
    assert main(["bench", str(one), "--evals", "absorption,core", *shlex.split(FLAGS)]) == 2
    log = one / "eval_results" / "absorption" / "one.log"
    said = "vsae: failed: absorption of one: IndexError: no features (see "
    assert said + str(log) in capsys.readouterr().err
    assert list(one.glob("eval_results/core/*.json"))
    assert not list(one.glob("eval_results/absorption/*.json"))
    assert "what SAE Bench prints" in log.read_text()
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("evaluation", ["core", "tpp"])
def test_a_killed_command_gives_the_same_when_it_is_typed_again(
    evaluation, one, books, monkeypatch
):
    """Also where the kill left half a file of what SAE Bench keeps for the next SAE."""
    on_books = SMALL | {"data": books}
    wanted = bench([one], evals=[evaluation], **on_books).results["one"][evaluation]
    (path,) = one.glob("eval_results/*/*")
    path.unlink()

    def killed(file):
        file.write_bytes(b"half")
        raise Killed

    def left_behind(path):
        folder = path.with_name(f".{path.name}.0123abcd")
        folder.mkdir()
        return folder / "new"

    def saving(what, file, *_, **__):
        killed(Path(file))

    # Nothing that is there to clean up after an error runs after a kill.
    with monkeypatch.context() as patched:
        patched.setattr("torch.save", saving)
        patched.setattr(
            runner,
            "write_json",
            lambda path, *_: killed(left_behind(path)),
        )
        with pytest.raises(Killed):
            bench([one], evals=[evaluation], **on_books)
    again = bench([one], evals=[evaluation], **on_books)
    again.check()
    assert again.results["one"][evaluation]["eval_result_metrics"] == wanted["eval_result_metrics"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


class Killed(BaseException):
    """In place of kill -9."""


def test_a_full_disk_keeps_what_is_finished(one, books, monkeypatch):
    on_books = SMALL | {"data": books}
    bench([one], evals=["core"], **on_books)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)  # where SAE Bench writes activations
    outcome = bench([one], evals=["core", "tpp"], **on_books)
    assert list(outcome.results["one"]) == ["core"]
    with pytest.raises(BenchError, match=r"tpp of one: OSError: "):
        outcome.check()


REFUSED = {
    "--evals core,scrr": r"evals='scrr': expected one of core, scr",
    "--evals scr --train-size 0": r"train_size=0: expected at least 16",
    "--data ./nowhere": r"data: \./nowhere: no such file or folder; expected",
    "--evals core --probing-sets all": r"probing_sets='all': expected sae_probes in evals",
    "--evals sae_probes --model nowhere --probing-sets glue": r"probing_sets='glue': expected smallest",
    "--model elsewhere": r"language model 'elsewhere' can't be loaded",
    "--hook blocks.1.hook_resid_post": r"trained on blocks\.0.*, not on blocks\.1",
    "--evals core,scr,sparse_probing": r"scr, sparse_probing: texts with labels are read, not embedded; ",
    "nobody/nothing": r"^vsae: nobody/nothing: no such folder here, and the hub",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_mistake_is_one_line(flags, one, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", str(one), "--data", "embedded", *shlex.split(flags)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(REFUSED[flags], error), error


def test_pythia_70m_as_far_as_it_goes_without_its_weights(
    tokenizer, text, books, tmp_path, monkeypatch
):
    """Its exact configuration, random weights, in a folder of its hub name: train and bench."""
    monkeypatch.chdir(tmp_path)
    config = transformers.GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=2048,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    t.manual_seed(0)
    lm = tmp_path / "EleutherAI" / "pythia-70m"
    transformers.GPTNeoXForCausalLM(config).save_pretrained(lm)
    tokenizer.save_pretrained(lm)
    flags = f"--preset paper --data {text} --steps 3 --batch-size 64 --n-ctxs 4 --ctx-len 32"
    flags += " --decay-start None --eval-tokens 0 --save-dir run"
    assert main(["train", *shlex.split(flags)]) == 0
    flags = f"--evals tpp {FLAGS} --data {books}"
    assert main(["bench", "run", *shlex.split(flags)]) == 0
    result = json.loads(next(Path("run/eval_results/tpp").glob("*.json")).read_text())
    assert result["eval_config"]["model_name"] == "pythia-70m"
    assert result["sae_cfg_dict"]["d_sae"] == 2048
    assert result["eval_config"]["n_values"] == [2, 5, 10, 20, 50, 100]


def test_saes_of_different_rules_are_benched_with_the_flag_that_is_named(one, trained, capsys):
    path = one / "config.json"
    config = json.loads(path.read_text())
    config["run"]["settings"]["max_norm_multiple"] = 4.0
    path.write_text(json.dumps(config))
    both = ["bench", str(one), str(trained["top_k"]), "--evals", "core", *shlex.split(FLAGS)]
    assert main(both) == 2
    error = capsys.readouterr().err
    assert re.search(r"; give max_norm_multiple=4(\.0)? ", error.strip())
    assert main([*both, "--max-norm-multiple", "4"]) == 0


def test_what_is_printed_says_what_to_believe(one, trained, books, capsys):
    folders = [str(one), str(trained["top_k"])]
    flags = [*shlex.split(FLAGS), "--evals", "core,scr", "--compare", "--data", books]
    assert main(["bench", *folders, *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^minus one +top_k$", out, re.MULTILINE)
    assert "arXiv 2605.18229" in out
    assert re.search(r"^FVE \(ours\) .*[+-]\d\.\d{4}$", out, re.MULTILINE)


def webtext(folder, texts):
    """The set that core reads, in a folder for --data."""
    path = folder / "Skylion007" / "openwebtext"
    path.mkdir(parents=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(path / "train.parquet")
    return SMALL | {"data": str(folder), "tokens": 512}


def test_another_folder_of_data_is_other_documents(one, tmp_path):
    found = []
    for name in ("a", "b"):
        words = f"the cat and {name} dog sat on a mat by the door in times of best".split()
        texts = [" ".join(words[i % 15 :] + words) * 8 + f" {i}" for i in range(300)]
        small = webtext(tmp_path / name, texts)
        outcome = bench([one], evals=["core"], **small)
        assert outcome.failures == {}
        metrics = outcome.results["one"]["core"]["eval_result_metrics"]
        found.append(metrics["reconstruction_quality"])
    assert found[0] != found[1]


def identity(width=D, hook_name=PLACE["hook_name"]):
    return IdentitySAE(width, "tiny", 0, "cpu", t.float32, hook_name)


def test_further_saes_are_evaluated_as_those_of_the_folders(one, trained):
    """Results are kept in the first folder, beside its own."""
    same = adapter.load_bench_sae(trained["vsae"], **PLACE)
    folders = [one, trained["top_k"]]
    outcome = bench(folders, evals=["core"], extra={"same": same, "id": identity()}, **SMALL)
    assert outcome.failures == {}
    assert list(outcome.results) == ["one", "top_k", "same", "id"]
    metrics = {
        label: found["core"]["eval_result_metrics"] for label, found in outcome.results.items()
    }
    assert metrics["same"] == metrics["one"] != metrics["top_k"]
    assert metrics["id"]["reconstruction_quality"]["mse"] == pytest.approx(0)
    path = one / "eval_results" / "core" / "same_custom_sae_eval_results.json"
    assert result_in(path, "core") == outcome.results["same"]["core"]


def test_core_takes_a_run_in_bfloat16(one):
    path = one / "config.json"
    config = json.loads(path.read_text())
    config["run"]["settings"]["dtype"] = "bfloat16"
    path.write_text(json.dumps(config))
    outcome = bench([one], evals=["core"], **SMALL)
    outcome.check()
    assert list(outcome.results["one"]) == ["core"]


def test_core_measures_on_the_runs_own_held_out_text_or_on_any_other(one, tmp_path, capsys):
    own = trained_on(find_sae(one)).data
    flags = ["bench", str(one), "--evals", "core", "--tokens", "512"]
    assert main(flags) == 0
    assert f"tokens of the held-out part of {Path(own).name}" in capsys.readouterr().out
    words = [
        "the",
        "cat",
        "and",
        "dog",
        "sat",
        "on",
        "a",
        "mat",
        "by",
        "the",
        "door",
        "in",
        "times",
        "of",
        "best",
    ]
    texts = [" ".join(words[i % 13 :] + words) * 4 + f" {i}" for i in range(400)]
    write_jsonl(tmp_path / "docs.jsonl", texts)
    before = bench([one], evals=["core"], tokens=512).results["one"]["core"]
    assert main([*flags, "--data", str(tmp_path / "docs.jsonl")]) == 0
    assert "docs.jsonl" in capsys.readouterr().out
    now = bench([one], evals=["core"], tokens=512, data=str(tmp_path / "docs.jsonl"))
    metrics = [found["eval_result_metrics"] for found in (before, now.results["one"]["core"])]
    assert metrics[0]["reconstruction_quality"] != metrics[1]["reconstruction_quality"]


@pytest.mark.parametrize(
    ("evals", "data", "said"),
    [
        ("core", "hub", "openwebtext"),
        ("core,scr", "docs.txt", "labels"),
        ("core", "no.txt", "no.txt"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(
    evals, data, said, one, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs.txt").write_text("the cat sat on the mat\n\n" * 100)
    monkeypatch.setattr(bench_data.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr("dictionary_learning_ext.sae_bench.runner.open_model", None)
    assert main(["bench", str(one), "--evals", evals, "--data", data]) == 2
    assert said in capsys.readouterr().err


def unreachable(*_, **options):
    raise OSError("no network")
