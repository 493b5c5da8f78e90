"""TransformerLens's conversion against the model that the SAEs are trained on."""

import pytest

from dictionary_learning_ext.activations.hook_points import HOOK_KINDS, find_hook
from dictionary_learning_ext.errors import BenchError

pytest.importorskip("sae_bench", reason="needs the extra: pip install -e '.[saebench]'")

from dictionary_learning_ext.sae_bench import lens_model


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "qwen", "gpt2"])
@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_transformer_lens_gives_the_training_activations(family, kind, lm_of):
    model = lm_of(family)
    hook = find_hook(model, f"blocks.1.{kind}")
    hooked = lens_model.hooked_transformer(model, hook, family)
    assert lens_model.check_activations(hooked, model, hook) < 1e-5


def test_a_model_that_was_processed_is_refused(lm_of):
    model = lm_of("gpt_neox")
    hook = find_hook(model, "blocks.1.hook_resid_post")
    hooked = lens_model.hooked_transformer(model, hook, "tiny")
    hooked.process_weights_(center_writing_weights=True)
    with pytest.raises(BenchError, match=r"TransformerLens's activations differ .* at most 1e-04"):
        lens_model.check_activations(hooked, model, hook)
