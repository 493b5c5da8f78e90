"""What upstream's users type, on the embedded language model, with only the trainer's name changed.

The calls and arguments are those of dictionary_learning's end-to-end test and of
dictionary_learning_demo. Sizes are smaller. `load_dictionary` is imported from this package: upstream's
own knows upstream's classes alone.
"""

import json
import math
from dataclasses import asdict, make_dataclass
from inspect import signature
from itertools import islice

import pytest
import torch as t
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.evaluation import evaluate
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import get_nested_folders
from dictionary_learning.utils import load_dictionary as load_upstream_dictionary
from nnsight import LanguageModel
from upstreams_tracing import upstreams_tracing

from dictionary_learning_ext import VariationalTopKTrainer, load_dictionary, open_text
from dictionary_learning_ext.activations.language_models import EMBEDDED_MODEL
from dictionary_learning_ext.cli import main
from dictionary_learning_ext.run_folder.sae_folder import find_sae

pytestmark = [pytest.mark.slow, upstreams_tracing]
CTX_LEN, LLM_BATCH, SAE_BATCH = 32, 16, 64
LAYER, SUBMODULE_NAME = 1, "resid_post_layer_1"
MODEL_NAME = "EleutherAI/pythia-70m-deduped"
BACKUPS = "backup_steps" in signature(trainSAE).parameters
"""Whether this is upstream's main branch: 0.1.0 on PyPI has none."""


@pytest.fixture(scope="module")
def model():
    return LanguageModel(str(EMBEDDED_MODEL), dispatch=True, device_map="cpu")


def buffer_of(model, texts, n_ctxs=64):
    """Upstream's own buffer, built as its test builds it."""
    return ActivationBuffer(
        iter(texts),
        model,
        model.gpt_neox.layers[LAYER],
        n_ctxs=n_ctxs,
        ctx_len=CTX_LEN,
        refresh_batch_size=LLM_BATCH,
        out_batch_size=SAE_BATCH,
        io="out",
        d_submodule=model.config.hidden_size,
        device="cpu",
    )


def evaluated(model, folder, texts):
    """As upstream's test does with each folder, and the demo."""
    dictionary, config = load_dictionary(folder, "cpu")
    dictionary = dictionary.to(dtype=model.dtype)
    assert config["buffer"]["ctx_len"] == CTX_LEN
    assert config["trainer"]["activation_dim"] == model.config.hidden_size
    return evaluate(
        dictionary,
        buffer_of(model, texts),
        config["buffer"]["ctx_len"],
        LLM_BATCH,
        io="out",
        device="cpu",
        n_batches=2,
    )


@pytest.fixture(scope="module")
def end_to_end(model, tmp_path_factory):
    """The folders of upstream's end-to-end test."""
    D, steps, output_dir = model.config.hidden_size, 30, tmp_path_factory.mktemp("end_to_end")
    common = {
        "activation_dim": D,
        "dict_size": 2 * D,
        "decay_start": None,
        "steps": steps,
        "seed": 42,
        "device": "cpu",
        "layer": LAYER,
        "lm_name": MODEL_NAME,
        "submodule_name": SUBMODULE_NAME,
    }
    trainer_configs = [
        {
            "trainer": VariationalTopKTrainer,  # the only change: TopKTrainer
            "dict_class": AutoEncoderTopK,
            "lr": None,
            "k": 40,
            "auxk_alpha": 1 / 32,
            "warmup_steps": 0,
            "wandb_name": f"TopKTrainer-{MODEL_NAME}-{SUBMODULE_NAME}",
            **common,
        },
        {
            "trainer": StandardTrainer,
            "dict_class": AutoEncoder,
            "lr": 3e-4,
            "l1_penalty": 2.0,
            "warmup_steps": 10,
            "sparsity_warmup_steps": None,
            "resample_steps": None,
            "wandb_name": f"StandardTrainer-{MODEL_NAME}-{SUBMODULE_NAME}",
            **common,
        },
    ]
    trainSAE(
        data=buffer_of(model, open_text("embedded")),
        trainer_configs=trainer_configs,
        steps=steps,
        save_steps=None,
        save_dir=str(output_dir),
    )
    return sorted(get_nested_folders(str(output_dir)))


def test_upstreams_end_to_end_test(end_to_end, model):
    ours, theirs = end_to_end
    texts = list(islice(open_text("embedded", split="heldout"), 400))
    classes = ["VariationalTopKAutoEncoder", "AutoEncoder"]
    for folder, name in zip(end_to_end, classes, strict=True):
        dictionary, config = load_dictionary(folder, "cpu")
        assert type(dictionary).__name__ == config["trainer"]["dict_class"] == name
        results = evaluated(model, folder, texts)
        assert {"frac_variance_explained", "frac_recovered", "frac_alive"} <= results.keys()
        assert all(math.isfinite(value) for value in results.values())
    assert evaluated(model, ours, texts)["l0"] == 40
    assert load_upstream_dictionary(theirs, "cpu")
    with pytest.raises(ValueError, match="VariationalTopKAutoEncoder"):
        load_upstream_dictionary(ours, "cpu")  # or else README need not name our own any more


def test_its_folder_is_evaluated_by_our_command(end_to_end, tmp_path, capsys):
    """lm_name is another model's name than the folder that the model is in."""
    hook = f"--hook=blocks.{LAYER}.hook_resid_post"
    command = ["eval", end_to_end[0], "--model", "embedded", "--tokens", "128", f"--out={tmp_path}"]
    assert main([*command, f"--hook=blocks.{LAYER + 1}.hook_resid_post"]) == 2
    assert f"blocks.{LAYER}.hook_resid_post" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert main([*command, hook]) == 0
    metrics = json.loads(
        (find_sae(end_to_end[0]).results_in(tmp_path) / "metrics.json").read_text()
    )
    assert (metrics["tokens"], metrics["measured_on"]["ctx_len"]) == (128, CTX_LEN)


@pytest.fixture(scope="module")
def demo(model, tmp_path_factory):
    """What the demo trains for top_k: its dataclass's fields and its call of `trainSAE`."""
    D, steps, save_dir = model.config.hidden_size, 20, tmp_path_factory.mktemp("demo")
    fields = {
        "activation_dim": D,
        "device": "cpu",
        "layer": LAYER,
        "lm_name": MODEL_NAME,
        "submodule_name": SUBMODULE_NAME,
        "trainer": VariationalTopKTrainer,  # the only change: TopKTrainer
        "dict_class": AutoEncoderTopK,
        "wandb_name": f"TopKTrainer-{MODEL_NAME}-{SUBMODULE_NAME}",
        "warmup_steps": 5,
        "steps": steps,
        "decay_start": int(steps * 0.8),
        "dict_size": 2 * D,
        "seed": 0,
        "lr": 3e-4,
        "k": 16,
        "auxk_alpha": 1 / 32,
        "threshold_beta": 0.999,
        "threshold_start_step": 1000,
    }
    config = make_dataclass("TopKTrainerConfig", fields)(**fields)
    trainSAE(
        data=buffer_of(model, open_text("embedded")),
        trainer_configs=[asdict(config)],
        use_wandb=False,
        steps=steps,
        save_steps=[int(steps * part) for part in (0, 0.1, 0.316)],
        save_dir=str(save_dir),
        log_steps=100,
        wandb_project="demo",
        normalize_activations=True,
        verbose=False,
        autocast_dtype=t.bfloat16,
        **({"backup_steps": 1000} if BACKUPS else {}),
    )
    return save_dir / "trainer_0"


def test_the_demos_configuration(demo, model):
    sae, config = load_dictionary(demo, "cpu")
    assert type(sae).__name__ == config["trainer"]["dict_class"] == "VariationalTopKAutoEncoder"
    results = evaluated(model, str(demo), open_text("embedded", split="heldout"))
    assert results["l0"] == 16
    assert all(math.isfinite(value) for value in results.values())
    for step in (0, 2, 6):
        assert load_dictionary(demo, step=step)[0].dict_size == sae.dict_size
