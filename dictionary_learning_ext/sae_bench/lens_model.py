"""The language model that an SAE was trained on, in the interface of TransformerLens, which SAE Bench needs.

`left_alone` lets SAE Bench's hooks change only the positions that the SAE's training used. SAE Bench's core replaces
activations at every position but special tokens, so attention sinks that training left out would dominate its CE and KL.
"""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import jaxtyping
import torch as t
from nnsight import LanguageModel
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as loading

from ..activations.hook_points import HookPoint, read_residual
from ..activations.language_models import CausalLM, unwrapped
from ..activations.positions import PositionRule, norms
from ..errors import BenchError, first_line

_Hook = Callable[..., t.Tensor]
TOLERANCE = 1e-4  # of the activations' rms
_CHECKED_TOKENS = (4, 32)


def hooked_transformer(
    model: LanguageModel | CausalLM, hook: HookPoint, name: str
) -> HookedTransformer:
    """A loaded language model in TransformerLens, without processing.

    No layer norm is folded and nothing is centred, because the SAEs were trained on the original model. TransformerLens
    converts many models (GPT-2, GPT-NeoX, Llama, Qwen and others) to a HookedTransformer. It can't convert others, e.g.
    Gemma 2, from a loaded model: they are wrapped in its TransformerBridge.

    Arguments:
        model: the language model that the SAE was trained on, in float32.
        hook: the hook point that it was trained on.
        name: the model's name in SAE Bench's caches and results.

    Raises: BenchError if TransformerLens can't take the model either way, or if the activations at the
    hook differ from the original ones by more than 1e-4 of their rms.
    """
    model = unwrapped(model)
    huggingface: Any = model.module
    tokenizer = copy.deepcopy(model.tokenizer)
    problems = []
    for make, what in ((_converted, "convert it"), (_bridged, "wrap it in a TransformerBridge")):
        try:
            hooked: Any = make(huggingface, tokenizer, name)
            hooked.eval().requires_grad_(False)
            check_activations(hooked, model, hook)
        except t.OutOfMemoryError:
            raise
        except Exception as error:  # TransformerLens raises many kinds for a model it doesn't know
            cause = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
            problems.append(f"can't {what} ({cause}{first_line(error)})")
        else:
            return hooked
    kind = type(huggingface).__name__
    raise BenchError(f"TransformerLens can't take a {kind}: it {', and '.join(problems)}")


def _converted(huggingface: Any, tokenizer: Any, name: str) -> HookedTransformer:
    """A HookedTransformer with weights that TransformerLens converted."""
    device = str(huggingface.device)
    # The conversion reads the config from a folder. In a temporary one, its path has no name, e.g.
    # "llama", that TransformerLens would recognise as a model that it knows.
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        config = copy.deepcopy(huggingface.config)
        config.architectures = [type(huggingface).__name__]
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
        hooked = HookedTransformer(cfg, tokenizer, move_to_device=False)
        hooked.load_and_process_state_dict(
            state,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
        hooked.move_model_modules_to_device()
    return hooked


def _bridged(huggingface: Any, tokenizer: Any, name: str) -> Any:
    """A TransformerBridge around a second model that shares the first one's weights.

    The modules of the first stay as they are, because nnsight reads them. Making the second takes the model's memory once more
    for a moment.
    """
    from transformer_lens.model_bridge import TransformerBridge

    config = copy.deepcopy(huggingface.config)
    config._attn_implementation = "eager"  # which TransformerLens reads attention patterns from
    with t.random.fork_rng(devices=[]):  # its random weights are replaced
        wrapped = type(huggingface)(config)
    wrapped.load_state_dict(huggingface.state_dict(), assign=True)
    with redirect_stdout(io.StringIO()):
        hooked = TransformerBridge.boot_transformers(
            name,
            hf_model=wrapped.to(huggingface.device).eval(),
            tokenizer=tokenizer,
            device=str(huggingface.device),
            dtype=t.float32,
        )
    hooked.cfg.model_name = name
    return hooked


@contextmanager
def loaded_by_name(hooked: Any) -> Iterator[None]:
    """Within the block, SAE Bench takes this model whatever name it loads.

    Its checks of type annotations by jaxtyping are off for a TransformerBridge, which is no HookedTransformer.
    """
    is_off = jaxtyping.config.jaxtyping_disable or not isinstance(hooked, HookedTransformer)
    with (
        patch.object(HookedTransformer, "from_pretrained_no_processing", return_value=hooked),
        patch.object(jaxtyping.config, "jaxtyping_disable", is_off),
    ):
        yield


@t.no_grad()
def check_activations(hooked: HookedTransformer, model: CausalLM, hook: HookPoint) -> float:
    """The largest difference between the two models' activations at the hook point, relative to their rms.

    Raises: BenchError if it is over 1e-4.
    """
    config: Any = model.module.config.get_text_config()
    generator = t.Generator().manual_seed(0)
    tokens = t.randint(config.vocab_size, _CHECKED_TOKENS, generator=generator)
    tokens = tokens.to(hooked.cfg.device)
    expected = read_residual(model, hook, tokens, t.ones_like(tokens)).float()
    _, cache = hooked.run_with_cache(
        tokens, names_filter=[hook.name], stop_at_layer=hook.layer + 1, prepend_bos=False
    )
    if hook.name not in cache:
        raise BenchError(
            f"TransformerLens has no {hook.name} in a {type(model.module).__name__}; use the "
            f"output of a block, blocks.{hook.layer}.hook_resid_post"
        )
    found = cache[hook.name].float()
    difference = float((found - expected).abs().max() / expected.square().mean().sqrt())
    if not difference <= TOLERANCE:
        raise BenchError(
            f"at {hook.name}, TransformerLens's activations differ from those that the SAE was "
            f"trained on by {difference:.1e} of their rms; expected at most {TOLERANCE:.0e}"
        )
    return difference


def wanted(rule: PositionRule, tokens_BL: t.Tensor, x_BLD: t.Tensor) -> t.Tensor:
    """(B, L), on the CPU, whether training uses each position. SAE Bench's batches have no padding."""
    by_token_BL = rule.by_token(tokens_BL, t.ones_like(tokens_BL)).cpu()
    return rule.by_norm(norms(x_BLD), by_token_BL)


def left_alone(model: HookedTransformer, rule: PositionRule) -> AbstractContextManager[Any]:
    """Within the block, hooks of `model.run_with_hooks` only change activations at positions that training uses."""
    run_with_hooks = model.run_with_hooks

    def limited(hook: _Hook, tokens_BL: t.Tensor) -> _Hook:
        def changed(x_BLD: t.Tensor, **arguments: Any) -> t.Tensor:
            is_wanted_BL1 = wanted(rule, tokens_BL, x_BLD).to(x_BLD.device).unsqueeze(-1)
            return t.where(is_wanted_BL1, hook(x_BLD.clone(), **arguments), x_BLD)

        return changed

    def run(tokens_BL: t.Tensor, *args: Any, fwd_hooks: Any, **options: Any) -> Any:
        hooks = [(name, limited(hook, tokens_BL)) for name, hook in fwd_hooks]
        return run_with_hooks(tokens_BL, *args, fwd_hooks=hooks, **options)

    return patch.object(model, "run_with_hooks", run)
