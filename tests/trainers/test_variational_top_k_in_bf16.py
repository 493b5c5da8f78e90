"""bf16 matmuls against fp32 on the embedded language model's activations."""

import pytest
import torch as t
from measurement import Measurement

from dictionary_learning_ext import (
    ResidualBuffer,
    VariationalTopKTrainer,
    find_hook,
    load_language_model,
    open_text,
)
from dictionary_learning_ext.evaluation.metrics import computed

STEPS, BATCH = 300, 512


@pytest.fixture(scope="module")
def activations():
    """Training and held-out activations at layer 0, scaled to E||x||^2 = D."""
    lm = load_language_model("embedded")
    hook = find_hook(lm, "blocks.0.hook_resid_post")

    def read(split, tokens):
        text = open_text("embedded", split=split)
        return next(ResidualBuffer(text, lm, hook, n_ctxs=tokens // 128, out_batch_size=tokens))

    train, held_out = read("train", 64 * 1024), read("heldout", 32 * 1024)
    factor = (train.square().sum(1).mean() / train.shape[1]).sqrt()
    return train / factor, held_out / factor


@pytest.mark.slow
def test_bf16_ends_within_0_003_fve_and_0_02_near_dead_of_fp32(activations):
    train, held_out = activations
    metrics = {}
    for dtype in ("float32", "bfloat16"):
        trainer = VariationalTopKTrainer(
            steps=STEPS,
            activation_dim=train.shape[1],
            dict_size=512,
            k=16,
            layer=0,
            lm_name="embedded",
            lr=2e-3,
            warmup_steps=50,
            decay_start=STEPS // 2,
            noise_anneal_steps=STEPS // 2,
            noise_on="both",
            sigma=0.5,
            kl_scope="all",
            prior_std=1.0,
            beta=0.01,
            dtype=dtype,
            seed=0,
            device="cpu",
        )
        order = t.Generator().manual_seed(0)
        for step in range(STEPS):
            trainer.update(step, train[t.randint(len(train), (BATCH,), generator=order)])
        measurement = Measurement(trainer.ae)
        for batch in held_out.split(4096):
            measurement.add(batch)
        metrics[dtype] = computed(measurement.totals)
    exact, fast = metrics["float32"], metrics["bfloat16"]
    assert exact["fve"] > 0.85
    assert abs(exact["fve"] - fast["fve"]) < 0.003
    for name in ("near_dead_0.1", "near_dead_0.5"):
        assert abs(exact[name] - fast[name]) < 0.02, (name, exact[name], fast[name])
