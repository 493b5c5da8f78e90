"""sae_probes in SAE Bench's real code, on the real data sets: which sets, its cache, and what it can't
use."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch as t
from bench_saes import SMALL, result_in

from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

from sae_probes import DATASETS, generate_model_activations  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.sae_bench import probes, runner
from dictionary_learning_ext.sae_bench.runner import bench

SETS = ("119_us_state_TX", "118_us_state_CA")
PROBES = SMALL | {"evals": ["sae_probes"], "probing_sets": ",".join(SETS)}


@pytest.fixture
def forward_passes(monkeypatch):
    """The data sets whose activations the language model computes, in order."""
    computed = []
    whole = generate_model_activations.generate_single_dataset_activations

    def counted(**arguments):
        computed.append(arguments["dataset_path"].name.partition(".")[0])
        whole(**arguments)

    monkeypatch.setattr(generate_model_activations, "generate_single_dataset_activations", counted)
    return computed


def test_results_are_in_sae_benchs_schema_with_every_set_and_the_language_model(
    trained, forward_passes, monkeypatch
):
    kept, convert = [], runner.hooked_transformer

    def noted(*arguments):
        kept.append(convert(*arguments))
        return kept[-1]

    monkeypatch.setattr(runner, "hooked_transformer", noted)
    folders = list(trained.values())
    outcome = bench(folders, bench_seeds=2, **PROBES)
    assert outcome.failures == {}
    # sae-probes cuts texts at their start, and changes the tokenizer for it.
    assert kept[0].tokenizer.truncation_side == "right"
    assert sorted(forward_passes) == sorted(SETS), "once for two SAEs and two seeds"
    for label, folder in trained.items():
        path = folder / "eval_results" / "sae_probes" / f"{label}_custom_sae_eval_results.json"
        found = result_in(path, "sae_probes")
        assert found == outcome.results[label]["sae_probes"]
        details = {detail["dataset_name"]: detail for detail in found["eval_result_details"]}
        assert sorted(details) == sorted(SETS)
        for k in (1, 2, 5):
            name = f"sae_top_{k}_test_accuracy"
            mean = sum(detail[name] for detail in details.values()) / len(SETS)
            assert found["eval_result_metrics"]["sae"][name] == pytest.approx(mean)
        assert 0.4 < found["eval_result_metrics"]["llm"]["llm_test_accuracy"] <= 1
        assert str(folder) not in path.read_text(), "no path of this machine"
        other = outcome.repeats[43][label]["sae_probes"]
        assert other["eval_config"]["random_seed"] == 43
        assert other["eval_result_metrics"] != found["eval_result_metrics"]
    results = [outcome.results[label]["sae_probes"]["eval_result_metrics"] for label in trained]
    assert results[0]["llm"] == results[1]["llm"]
    assert results[0]["sae"] != results[1]["sae"], "each its own"


def test_activations_survive_a_kill_in_whole_files_only(one, forward_passes, monkeypatch):
    """A second run computes the sets that the first did not finish. Nothing half is used."""
    save, saved = t.save, []

    def stopping(value, path, **arguments):
        saved.append(path)
        if len(saved) > 1:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        save(value, path, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(generate_model_activations.torch, "save", stopping)
        # As if the process were killed: nothing is cleared.
        patched.setattr(runner.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            bench([one], **PROBES)
    assert bench([one], **PROBES).failures == {}
    assert forward_passes == [SETS[0], SETS[1], SETS[1]]


class NoPadding:
    truncation_side, padding_side = "right", "left"

    def __call__(self, *_, padding, **__):
        raise ValueError("Asking to pad but the tokenizer does not have a padding token.")


def test_a_tokenizer_that_can_not_be_used_is_named():
    model = SimpleNamespace(tokenizer=NoPadding(), cfg=SimpleNamespace(model_name="tiny"))
    message = r"can't use the tokenizer of tiny \(Asking to pad.*\).* set the tokenizer's pad"
    with (
        pytest.raises(BenchError, match=message),
        probes._sae_probes_tokenizer(model),  # pyright: ignore[reportArgumentType]
    ):
        pass


def test_the_smallest_are_those_of_the_fewest_characters():
    from sae_probes.constants import DATA_PATH  # pyright: ignore[reportMissingImports]

    def characters(name):
        rows = pd.read_csv(DATA_PATH / "cleaned_data" / f"{name}.csv.zst", usecols=["prompt"])
        return int(rows["prompt"].str.len().sum())

    sizes = {name: characters(name) for name in DATASETS}
    small = [name for name, size in sizes.items() if size <= probes.MOST_CHARACTERS]
    assert list(probes.SMALLEST_SETS) == sorted(small, key=lambda name: sizes[name])


@pytest.mark.parametrize("asked", ["glue_cola", "41_truthqa_tf,glue_cola", ""])
def test_an_unknown_name_is_refused_with_those_like_it(asked):
    message = (
        r"sae-probes has no data set '(glue_cola|)'; expected smallest, all, or names .* e\.g\."
    )
    with pytest.raises(BenchError, match=message) as refused:
        probes.chosen_sets(asked)
    assert not asked or "87_glue_cola" in str(refused.value)
    assert str(refused.value).endswith("` lists all")
