"""TransformerLens's conversion against the model that the SAEs are trained on."""

from typing import Any

import pytest

from dictionary_learning_ext.activations.hook_points import HOOK_KINDS, find_hook
from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from transformer_lens import (  # pyright: ignore[reportMissingImports]
    HookedTransformer,
    HookedTransformerConfig,
)
from transformer_lens.pretrained.weight_conversions import (  # pyright: ignore[reportMissingImports]
    convert_gemma_weights,
)

from dictionary_learning_ext.sae_bench import lens_model


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen", "qwen3", "gpt2"])
@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_transformer_lens_gives_the_training_activations(family, kind, lm_of):
    model = lm_of(family)
    hook = find_hook(model, f"blocks.1.{kind}")
    hooked = lens_model.hooked_transformer(model, hook, family)
    assert lens_model.check_activations(hooked, model, hook) < 1e-5


@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_where_a_norm_follows_the_mlp_it_counts_as_transformer_lens_counts(kind, lm_of):
    """A Gemma 2, which TransformerLens only configures by its name on the hub."""
    model = lm_of("gemma")
    huggingface: Any = model._model
    config = huggingface.config
    cfg = HookedTransformerConfig(
        n_layers=3,
        d_model=16,
        n_ctx=128,
        d_head=8,
        n_heads=2,
        n_key_value_heads=2,
        d_mlp=32,
        d_vocab=304,
        act_fn="gelu_pytorch_tanh",
        eps=config.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=8,
        attn_scale=config.query_pre_attn_scalar**0.5,
        attn_scores_soft_cap=config.attn_logit_softcapping,
        output_logits_soft_cap=config.final_logit_softcapping,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        device="cpu",
    )
    hooked = HookedTransformer(cfg, move_to_device=False)
    state = convert_gemma_weights(huggingface, cfg)
    hooked.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    hook = find_hook(model, f"blocks.1.{kind}")
    assert lens_model.check_activations(hooked, model, hook) < 1e-5


def test_a_model_that_was_processed_is_refused(lm_of):
    model = lm_of("gpt_neox")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "tiny")
    hooked.process_weights_(center_writing_weights=True)
    with pytest.raises(BenchError, match=r"TransformerLens's activations differ .* at most 1e-04"):
        lens_model.check_activations(hooked, model, hook)
