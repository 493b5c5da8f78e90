"""Sizes of the SAE Bench tests, where their SAEs are said to be trained, and results on the disk."""

import json

from dictionary_learning_ext.config.architectures import import_class

D, F, K = 16, 64, 4
SMALL = {"tokens": 2048, "train_size": 40, "test_size": 20, "data": "embedded"}
FLAGS = "--tokens 2048 --train-size 40 --test-size 20 --data embedded"
FOUR = ("core", "scr", "tpp", "sparse_probing")
OUTPUTS = {
    "core": "core.eval_output:CoreEvalOutput",
    "scr": "scr_and_tpp.eval_output:ScrEvalOutput",
    "tpp": "scr_and_tpp.eval_output:TppEvalOutput",
    "sparse_probing": "sparse_probing.eval_output:SparseProbingEvalOutput",
    "sae_probes": "sparse_probing_sae_probes.eval_output:SparseProbingSaeProbesEvalOutput",
}


def result_in(path, evaluation):
    """What a file of results holds. Raises pydantic's ValidationError unless it is in SAE Bench's schema."""
    from pydantic import TypeAdapter

    found = json.loads(path.read_bytes())
    TypeAdapter(import_class(f"sae_bench.evals.{OUTPUTS[evaluation]}")).validate_python(found)
    return found


PLACE = {"model_name": "tiny", "hook_name": "blocks.0.hook_resid_post", "hook_layer": 0}
