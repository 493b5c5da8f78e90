"""The table of architectures: its paths, and the names that files and plots take from it."""

import pytest
from small_trainers import built

from dictionary_learning_ext.config.architectures import (
    ARCHITECTURES,
    BY_DICT_CLASS,
    TRAINED,
    import_class,
)


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_every_path_is_that_of_a_class(row):
    paths = [row.dictionary, *filter(None, (row.trainer, row.exported_as))]
    for path in paths:
        found = import_class(path)
        assert isinstance(found, type)
        assert found.__name__ == path.partition(":")[2]
    if row.unit_norm_by is not None:
        assert callable(getattr(import_class(row.dictionary), row.unit_norm_by))


@pytest.mark.parametrize("name", TRAINED)
def test_the_classes_are_named_as_the_trainers_config_names_them(name):
    row, config = TRAINED[name], built(name).config
    assert row.dict_class == config["dict_class"]
    # Where upstream's readers can take the SAE, config.json names upstream's trainer.
    names = [cls.__name__ for cls in import_class(row.trainer).__mro__]
    assert config["trainer_class"] in names
    as_upstreams = {"jump_relu", "probabilistic_top_k"}
    assert (config["trainer_class"] == row.trainer_class) == (name not in as_upstreams)


def test_which_are_trained():
    not_trained = ARCHITECTURES.keys() - TRAINED.keys()
    assert not_trained == {"gated", "relu_new"}
    assert {ARCHITECTURES[name].trainer_class for name in not_trained} == {None}


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [
        ("top_k", "", "topk"),
        ("vsae_top_k", "fixed_values", "vsae_fixed_values"),
        ("vsae", "point", "vsae_point"),
        ("vaease", "", "vaease"),
        ("relu_new", "", "standard_april_update"),
    ],
)
def test_sae_benchs_name_has_the_variant_and_is_the_rows_name_by_default(name, variant, expected):
    assert ARCHITECTURES[name].bench_name_of(variant) == expected


def test_a_class_that_rows_share_is_the_first_ones():
    transcoders = {f"Variational{name}Transcoder" for name in ("TopK", "BatchTopK")}
    own = {row.dict_class for row in ARCHITECTURES.values()}
    assert BY_DICT_CLASS.keys() == own | transcoders
    assert BY_DICT_CLASS["AutoEncoderTopK"].name == "top_k"
    assert BY_DICT_CLASS["VariationalTopKAutoEncoder"].name == "vsae_top_k"
