"""Sizes of the SAE Bench tests, and where their SAEs are said to be trained."""

D, F, K = 16, 64, 4
SMALL = {"tokens": 2048, "train_size": 40, "test_size": 20, "data": "embedded"}
FLAGS = "--tokens 2048 --train-size 40 --test-size 20 --data embedded"
FOUR = ("core", "scr", "tpp", "sparse_probing")


def place(**changes):
    return {
        "model_name": "tiny",
        "hook_name": "blocks.0.hook_resid_post",
        "hook_layer": 0,
        "architecture": "vsae",
    } | changes
