"""sae_probes in SAE Bench's real code, on the real data sets: which sets, and its cache."""

import pandas as pd
import pytest
from bench_saes import SMALL, result_in

from dictionary_learning_ext.errors import ConfigError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[sae-bench]'")

from sae_probes import DATASETS, generate_model_activations  # pyright: ignore[reportMissingImports]

from dictionary_learning_ext.sae_bench import probes, runner
from dictionary_learning_ext.sae_bench.runner import bench

pytestmark = pytest.mark.extra

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
    outcome = bench(folders, **PROBES)
    assert outcome.failures == {}
    # sae-probes cuts texts at their start, and changes the tokenizer for it.
    assert kept[0].tokenizer.truncation_side == "right"
    assert sorted(forward_passes) == sorted(SETS), "once for two SAEs"
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
    results = [outcome.results[label]["sae_probes"]["eval_result_metrics"] for label in trained]
    assert results[0]["llm"] == results[1]["llm"]
    assert results[0]["sae"] != results[1]["sae"], "each its own"


def test_half_a_file_of_activations_that_a_kill_leaves_is_not_used(one, monkeypatch):
    def stopping(_, path, **__):
        path.write_bytes(b"half a file")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(generate_model_activations.torch, "save", stopping)
        patched.setattr(runner, "_clear", lambda _: None)  # as nothing is after a kill
        with pytest.raises(Killed):
            bench([one], **PROBES)
    assert list(one.rglob("*.pt")), "left behind"
    assert bench([one], **PROBES).failures == {}


class Killed(BaseException):
    """In place of kill -9."""


def test_the_smallest_are_those_of_the_fewest_characters():
    from sae_probes.constants import DATA_PATH  # pyright: ignore[reportMissingImports]

    def characters(name):
        rows = pd.read_csv(DATA_PATH / "cleaned_data" / f"{name}.csv.zst", usecols=["prompt"])
        return int(rows["prompt"].str.len().sum())

    sizes = {name: characters(name) for name in DATASETS}
    small = [name for name, size in sizes.items() if size <= 100_000]
    assert probes.chosen_sets("smallest") == small
    assert len(small) == 30


@pytest.mark.parametrize("asked", ["glue_cola", "41_truthqa_tf,glue_cola", ""])
def test_an_unknown_name_is_refused_with_those_like_it(asked):
    with pytest.raises(ConfigError) as refused:
        probes.chosen_sets(asked)
    assert (refused.value.name, refused.value.value) == ("probing_sets", asked)
    assert not asked or "87_glue_cola" in str(refused.value)
