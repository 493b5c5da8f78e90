"""Which of sae-probes's data sets are used."""

import pandas as pd
import pytest

from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench.sae_probes import MOST_CHARACTERS, SMALLEST_SETS, chosen_sets


def test_the_smallest_are_those_of_the_fewest_characters():
    from sae_probes import DATASETS  # pyright: ignore[reportMissingImports]
    from sae_probes.constants import DATA_PATH  # pyright: ignore[reportMissingImports]

    def characters(name):
        rows = pd.read_csv(DATA_PATH / "cleaned_data" / f"{name}.csv.zst", usecols=["prompt"])
        return int(rows["prompt"].str.len().sum())

    sizes = {name: characters(name) for name in DATASETS}
    small = [name for name, size in sizes.items() if size <= MOST_CHARACTERS]
    assert list(SMALLEST_SETS) == sorted(small, key=lambda name: sizes[name])


def test_all_and_some_by_name():
    assert chosen_sets("smallest") == list(SMALLEST_SETS)
    assert len(chosen_sets("all")) == 113
    assert chosen_sets("87_glue_cola, 41_truthqa_tf,87_glue_cola") == [
        "87_glue_cola",
        "41_truthqa_tf",
    ]


@pytest.mark.parametrize("asked", ["glue_cola", "41_truthqa_tf,glue_cola", ""])
def test_an_unknown_name_is_refused_with_those_like_it(asked):
    message = (
        r"sae-probes has no data set '(glue_cola|)'; expected smallest, all, or names .* e\.g\."
    )
    with pytest.raises(BenchError, match=message) as refused:
        chosen_sets(asked)
    assert not asked or "87_glue_cola" in str(refused.value)
    assert str(refused.value).endswith("` lists all")
