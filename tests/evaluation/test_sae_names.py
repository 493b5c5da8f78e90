"""SAEs are called by what tells them apart, and no longer."""

from pathlib import Path

from dictionary_learning_ext.config.run import TrainConfig
from dictionary_learning_ext.config.sae import SAEConfig
from dictionary_learning_ext.evaluation.tables import by_settings, short_names


def test_names_are_shortened_as_far_as_they_differ():
    assert short_names(["runs/q/a", "runs/q/b"]) == {"runs/q/a": "a", "runs/q/b": "b"}
    assert short_names(["r/1/a", "r/2/a", "r/2/b"]) == {
        "r/1/a": "1/a",
        "r/2/a": "2/a",
        "r/2/b": "2/b",
    }
    assert short_names(["a", "x/a"]) == {"a": "a", "x/a": "x/a"}
    assert short_names(["runs/a"]) == {"runs/a": "a"}
    assert short_names(["runs/a", "runs/a/"]) == {"runs/a": "runs/a", "runs/a/": "runs/a/"}
    assert short_names(["."]) == {".": "."}


def test_of_long_names_only_what_differs_is_shown():
    names = [
        f"runs/s/vsae_top_k_k8_F64_fixed_both_beta{beta}_sigma1_lr0.001_seed{seed}_{digest}"
        for beta, seed, digest in ((0, 0, "1c9031"), (0.1, 0, "dc9618"), (0.1, 1, "58b04e"))
    ]
    assert list(short_names(names).values()) == [
        "…beta0…seed0_1c9031",
        "…beta0.1…seed0_dc9618",
        "…beta0.1…seed1_58b04e",
    ]
    bare = [Path(name).name for name in names]  # as in the folder where they are
    assert [*short_names(bare).values()] == [*short_names(names).values()]
    assert short_names([names[0], "runs/top_k"]) == {
        names[0]: names[0].removeprefix("runs/s/"),
        "runs/top_k": "top_k",
    }
    mixed = short_names([*names, "runs/top_k", "runs/a"])
    assert [mixed[name] for name in names] == [*short_names(names).values()]
    assert short_names(names[:1]) == {names[0]: names[0].removeprefix("runs/s/")}


def test_long_names_give_way_to_the_settings_that_differ():
    def called(*saes):
        configs = [TrainConfig(SAEConfig(architecture="vsae_top_k", **sae)) for sae in saes]
        return list(by_settings({f"{i}" * 40: each for i, each in enumerate(configs)}).values())

    assert called({"k": 8, "beta": 0.0}, {"k": 16, "beta": 0.03}) == [
        "k=8 beta=0",
        "k=16 beta=0.03",
    ]
    noisy = [{"k": k, "sigma": 1.0 / k, "noise_to_signal": 0.3} for k in (2, 4)]
    assert called(*noisy) == ["k=2", "k=4"], "sigma follows"
    assert called({"k": 8}, {"k": 8}) == ["0" * 40, "1" * 40], "nothing tells them apart"
    assert called({"k": 8}) == ["0" * 40]
    short = {"a": TrainConfig(SAEConfig(k=2)), "b": TrainConfig(SAEConfig(k=4))}
    assert by_settings(short) == {"a": "a", "b": "b"}
