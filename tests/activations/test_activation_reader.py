"""Which tokens are left out, and that training and reports read by the same rules."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight import LanguageModel

from dictionary_learning_ext.activations.activation_reader import ActivationReader
from dictionary_learning_ext.activations.contexts import read_contexts
from dictionary_learning_ext.activations.hook_points import HookPoint, find_hook, read_residual
from dictionary_learning_ext.activations.language_models import load_language_model
from dictionary_learning_ext.activations.rows import ActivationRows
from dictionary_learning_ext.activations.text import open_text
from dictionary_learning_ext.activations.tokens import ContextStream
from dictionary_learning_ext.config.run import RunConfig
from dictionary_learning_ext.errors import ConfigError, NonFiniteError

HOOK = "blocks.1.hook_resid_post"
IDS = torch.tensor([[0, 50, 51, 52], [53, 0, 54, 1]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def reader_of(lm: LanguageModel, **options: Any) -> tuple[ActivationReader, HookPoint]:
    hook = find_hook(lm, HOOK)
    return ActivationReader(lm, hook.submodule, hook.io, **options), hook


def test_padding_and_beginning_of_text_are_left_out(tiny_lm: LanguageModel):
    everything, _ = reader_of(tiny_lm)
    assert everything.rule.by_token(IDS, MASK).equal(MASK.bool())
    without_bos, _ = reader_of(tiny_lm, remove_bos=True)
    assert without_bos.rule.by_token(IDS, MASK).equal(MASK.bool() & (IDS != 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers_are_those_of_the_norms_in_float32(tiny_lm_dir: Path, dtype: torch.dtype):
    lm = load_language_model(str(tiny_lm_dir), dtype=dtype)
    reader, hook = reader_of(lm, max_norm_multiple=1.1)
    wanted_BL = reader.rule.by_token(IDS, MASK)
    read = reader.read(IDS, MASK, wanted_BL)
    norms_BL = read_residual(lm, hook, IDS, MASK).float().norm(dim=-1)
    expected_BL = wanted_BL & (norms_BL <= 1.1 * norms_BL[wanted_BL].median())
    assert 0 < expected_BL.sum() < wanted_BL.sum()
    assert read.wanted_BL.equal(expected_BL)
    assert wanted_BL.equal(MASK.bool())  # what was given is not changed
    assert read.x_BLD.equal(read_residual(lm, hook, IDS, MASK))


def test_the_median_is_of_the_tokens_that_are_read(tiny_lm: LanguageModel):
    reader, hook = reader_of(tiny_lm, max_norm_multiple=1.001)
    norms_N = read_residual(tiny_lm, hook, IDS, MASK).norm(dim=-1)[0]
    only_largest_BL = torch.zeros_like(IDS, dtype=torch.bool)
    only_largest_BL[0, norms_N.argmax()] = True
    assert not reader.read(IDS, MASK, MASK.bool()).wanted_BL[only_largest_BL].any()
    assert reader.read(IDS, MASK, only_largest_BL).wanted_BL.equal(only_largest_BL)


@pytest.mark.parametrize("max_norm_multiple", [None, 10.0])
def test_only_a_wanted_token_must_be_finite(tiny_lm_dir: Path, max_norm_multiple: float | None):
    lm: Any = load_language_model(str(tiny_lm_dir))
    reader, _ = reader_of(lm, max_norm_multiple=max_norm_multiple)
    with torch.no_grad():
        lm._model.gpt_neox.embed_in.weight[54] = math.inf  # in the second context

    def read(wanted_BL: torch.Tensor) -> None:
        reader.require_finite(reader.read(IDS, MASK, wanted_BL).non_finite)

    first_BL = torch.tensor([[True], [False]]) & MASK.bool()
    read(first_BL)
    with pytest.raises(
        NonFiniteError, match=r"^3 activations .* output of gpt_neox\.layers\.1 are"
    ):
        read(MASK.bool())


def test_nothing_wanted_is_no_error(tiny_lm: LanguageModel):
    reader, _ = reader_of(tiny_lm, max_norm_multiple=2.0)
    read = reader.read(IDS, MASK, torch.zeros_like(IDS, dtype=torch.bool))
    assert not read.wanted_BL.any()
    reader.require_finite(read.non_finite)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_bos": True},
        {"text_packing": "truncate", "remove_bos": True},
        {"max_norm_multiple": 1.2},
        {"text_packing": "truncate", "max_norm_multiple": 1.2},
    ],
)
def test_a_buffer_and_a_report_read_the_same_tokens_to_the_bit(
    tiny_lm_dir: Path, tmp_path: Path, options: dict[str, Any], dtype: torch.dtype
):
    lm = load_language_model(str(tiny_lm_dir), dtype=dtype)
    documents = ["the cat sat on a mat " * (n % 4 + 1) for n in range(90)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    run = RunConfig(data=str(tmp_path / "a.txt"), ctx_len=16, **options)
    rules = {name: getattr(run, name) for name in ("remove_bos", "max_norm_multiple")}
    reader, hook = reader_of(lm, **rules)
    batch = next(read_contexts(run, lm, hook, "train", 10_000))
    n_wanted = int(batch.wanted_BL.sum())
    assert (n_wanted < batch.wanted_BL.numel()) == bool(options)

    contexts = ContextStream(open_text(run.data), lm.tokenizer, 16, packing=run.text_packing)
    rows = ActivationRows(contexts, reader, batch_size=len(batch.wanted_BL))
    # Room for all tokens of 32 contexts, so that these are read at once, as read_contexts does.
    rows_ND = torch.empty(batch.wanted_BL.numel(), 16)
    rows.fill(rows_ND)
    assert rows_ND[:n_wanted].equal(batch.x_BLD[batch.wanted_BL])


@pytest.mark.parametrize("options", [{}, {"max_norm_multiple": 10.0}])
def test_a_buffer_and_a_report_have_one_error(
    tiny_lm_dir: Path, text: str, options: dict[str, Any]
):
    lm: Any = load_language_model(str(tiny_lm_dir))
    with torch.no_grad():
        lm._model.gpt_neox.embed_in.weight[lm.tokenizer.encode(" the")[0]] = math.inf
    reader, hook = reader_of(lm, **options)
    run = RunConfig(data=text, ctx_len=16, **options)
    with pytest.raises(NonFiniteError, match="NaN or infinite; expected finite") as of_report:
        next(read_contexts(run, lm, hook, "train", 10_000))
    contexts = ContextStream(open_text(text), lm.tokenizer, 16)
    with pytest.raises(NonFiniteError) as of_buffer:
        ActivationRows(contexts, reader, batch_size=32).fill(torch.empty(32 * 16, 16))
    assert str(of_report.value) == str(of_buffer.value)
    assert "load the model in float32" in str(of_buffer.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_norm_multiple": 1.0}, "max_norm_multiple=1.0: expected above 1"),
        ({"io": "middle"}, "io='middle': expected in or out"),
    ],
)
def test_impossible_settings_are_refused(
    tiny_lm: LanguageModel, options: dict[str, Any], says: str
):
    hook = find_hook(tiny_lm, HOOK)
    io = options.pop("io", "out")
    with pytest.raises(ConfigError, match=says):
        ActivationReader(tiny_lm, hook.submodule, io, **options)


def test_removing_a_token_that_the_tokenizer_lacks_is_refused(tiny_lm_dir: Path):
    lm: Any = load_language_model(str(tiny_lm_dir))
    lm.tokenizer.bos_token = None
    with pytest.raises(ConfigError, match=r"remove_bos=True: .*; use remove_bos=False"):
        reader_of(lm, remove_bos=True)
