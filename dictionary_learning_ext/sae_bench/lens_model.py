"""The language model that an SAE was trained on, as TransformerLens's HookedTransformer."""

import copy
import io
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch as t
from nnsight import LanguageModel
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as loading

from ..activations.hook_points import HookPoint, read_residual
from ..errors import BenchError, first_line

TOLERANCE = 1e-4  # of the activations' rms
_CHECKED_TOKENS = (4, 32)
_CONVERTED = "GPTNeoXForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM and others"


def hooked_transformer(model: LanguageModel, hook: HookPoint, name: str) -> HookedTransformer:
    """Convert a loaded language model with TransformerLens's own conversion, without processing.

    No layer norm is folded and nothing is centred, as the SAEs were trained on the original model.

    Arguments:
        model: the language model that the SAE was trained on, in float32.
        hook: the hook point that it was trained on.
        name: the model's name in SAE Bench's caches and results.

    Raises: BenchError if TransformerLens can't convert the model, or if the activations at the hook
    differ from the original ones by more than 1e-4 of their rms.
    """
    huggingface: Any = model._model
    device = str(huggingface.device)
    architecture = type(huggingface).__name__
    try:
        # The conversion reads the config from a folder. In a temporary one, its path has no name,
        # e.g. "llama", that TransformerLens would recognise as a model that it knows.
        with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            config = copy.deepcopy(huggingface.config)
            config.architectures = [architecture]
            if hasattr(config, "n_positions"):  # GPT-2's, once called n_ctx too
                config.n_ctx = config.n_positions
            config.save_pretrained(folder)
            cfg = loading.get_pretrained_model_config(
                folder, hf_cfg=config.to_dict(), device=device, dtype=t.float32
            )
            state = loading.get_pretrained_state_dict(
                folder, cfg, hf_model=huggingface, dtype=t.float32
            )
            cfg.model_name = name
            hooked = HookedTransformer(cfg, copy.deepcopy(model.tokenizer), move_to_device=False)
            hooked.load_and_process_state_dict(
                state,
                fold_ln=False,
                center_writing_weights=False,
                center_unembed=False,
                fold_value_biases=False,
            )
            hooked.move_model_modules_to_device()
    except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
        raise BenchError(
            f"TransformerLens can't convert a {architecture} "
            f"({type(error).__name__}: {first_line(error)}); it converts {_CONVERTED}"
        ) from error
    hooked.eval().requires_grad_(False)
    check_activations(hooked, model, hook)
    return hooked


@t.no_grad()
def check_activations(hooked: HookedTransformer, model: LanguageModel, hook: HookPoint) -> float:
    """The largest difference between the two models' activations at the hook, over their rms.

    Raises: BenchError if it is over 1e-4.
    """
    config: Any = model.config.get_text_config()
    generator = t.Generator().manual_seed(0)
    tokens = t.randint(config.vocab_size, _CHECKED_TOKENS, generator=generator)
    tokens = tokens.to(hooked.cfg.device)
    expected = read_residual(model, hook, tokens, t.ones_like(tokens)).float()
    _, cache = hooked.run_with_cache(
        tokens, names_filter=[hook.name], stop_at_layer=hook.layer + 1, prepend_bos=False
    )
    found = cache[hook.name].float()
    difference = float((found - expected).abs().max() / expected.square().mean().sqrt())
    if not difference <= TOLERANCE:
        raise BenchError(
            f"at {hook.name}, TransformerLens's activations differ from those that the SAE was "
            f"trained on by {difference:.1e} of their rms; expected at most {TOLERANCE:.0e}. "
            f"Its conversion of {Path(hooked.cfg.model_name).name} is not the same model"
        )
    return difference
