"""Batches from disk: every row once per pass, in an order that the seed decides, resumed to the bit."""

import json
import re
from collections import Counter
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch as t
from caches import HOOK, OTHER, write_small
from datasets import load_from_disk
from texts import error_of

from dictionary_learning_ext.activations.positions import PositionRule
from dictionary_learning_ext.activations.stored import open_stored
from dictionary_learning_ext.activations.stored_rows import StoredRows
from dictionary_learning_ext.errors import ConfigError, NonFiniteError, TextError
from dictionary_learning_ext.run_folder.cache_manifest import read_manifest

N, WIDTH = 10_007, 3


@pytest.fixture
def numbered(tmp_path):
    """Rows that say which they are: 9,507 to train on and 500 held out, in three files."""
    folder = tmp_path / "own"
    folder.mkdir()
    rows = np.arange(N, dtype=np.float32).repeat(WIDTH).reshape(N, WIDTH)
    for name, part in zip("abc", np.split(rows, [4500, 4600]), strict=True):
        np.save(folder / f"{name}.npy", part)
    return open_stored(folder)


def source_of(
    stored,
    hook="x",
    *,
    rows=1000,
    out_batch_size=100,
    remove_bos=False,
    max_norm_multiple=None,
    **options,
):
    settings = stored.manifest and stored.manifest.settings
    rule = PositionRule(settings, remove_bos=remove_bos, max_norm_multiple=max_norm_multiple)
    return StoredRows(stored, hook, rule, size=rows, out_batch_size=out_batch_size, **options)


def batches_of(source):
    """All there are."""
    found = []
    while True:
        try:
            found.append(next(source))
        except TextError:
            return found


def numbers(batches):
    return t.cat(list(batches))[:, 0].int().tolist()


def test_every_row_comes_once_per_pass_in_an_order_of_its_own(numbered):
    train = set(range(N - N // 20))
    found = numbers(batches_of(source_of(numbered, passes=3)))
    # The rows after the last whole batch are left.
    assert len(found) == 3 * len(train) // 100 * 100
    counts = Counter(found)
    assert set(counts) <= train
    assert max(counts.values()) == 3
    # A fill may take the last rows of one pass and the first ones of the next.
    assert set(found[: len(train) + 1000]) == train
    assert found[:1000] != found[len(train) :][:1000]


def test_each_pass_has_an_order_of_its_own_of_rows_and_of_files(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(400, dtype=np.float32)[:, None])
    whole = source_of(open_stored(tmp_path), rows=380, out_batch_size=380, passes=2)
    one, other = map(numbers, ([batch] for batch in batches_of(whole)))
    assert sorted(one) == sorted(other) == list(range(380))
    assert one != other
    for name, part in zip("abcd", np.arange(400, dtype=np.float32).reshape(4, 100), strict=True):
        np.save(tmp_path / f"{name}.npy", part[:, None])
    passes = []
    for seed in range(3):
        few = source_of(open_stored(tmp_path), rows=20, out_batch_size=20, passes=2, seed=seed)
        files = [number // 100 for number in numbers(batches_of(few))]
        passes.append((files[:380], files[380:]))
    assert all(sorted(one) == sorted(other) for one, other in passes)
    assert any(one != other for one, other in passes)


def test_a_buffer_is_shuffled_and_files_come_in_an_order_of_the_seed(numbered):
    firsts = set()
    for seed in range(8):
        batch, again = (numbers(islice(source_of(numbered, seed=seed), 10)) for _ in range(2))
        firsts.add(min(batch))
        assert batch == again != sorted(batch)
        assert max(batch) - min(batch) < 1000 + 4500
    assert len(firsts) > 1


def test_a_batch_is_in_the_dtype_of_the_disk(cached_run, tmp_path):
    write_small(tmp_path, cached_run, 1000, dtype="float16")
    assert next(source_of(open_stored(tmp_path), HOOK, rows=500)).dtype == t.float16


def test_hook_points_come_in_the_same_token_order(small_cache):
    stored = open_stored(small_cache)
    rows = load_from_disk(str(small_cache)).with_format("torch")[:]
    one, other = (next(source_of(stored, hook)) for hook in (HOOK, OTHER))
    place = [(rows[HOOK].reshape(-1, 16) == row).all(1).nonzero()[0, 0] for row in one]
    assert t.equal(rows[OTHER].reshape(-1, 16)[t.stack(place)], other)


@pytest.mark.parametrize("taken", [0, 1, 7, 10, 33, 95, 140])
@pytest.mark.parametrize("rules", [{}, {"max_norm_multiple": 1.5}])
def test_it_resumes_to_the_bit(taken, rules, numbered):
    options = {"passes": 2, **rules}
    whole = source_of(numbered, **options)
    if taken % 2:
        whole.mean_squared_norms()
    before = list(islice(whole, taken))
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = source_of(numbered, **options)
    resumed.load_state_dict(state)
    assert resumed.tokens_seen == 100 * taken == 100 * len(before)
    after, expected = batches_of(resumed), batches_of(whole)
    assert len(after) == len(expected) > 0
    assert all(t.equal(*each) for each in zip(after, expected, strict=True))
    assert resumed.state_dict() == whole.state_dict()


def test_on_a_cache_that_grows_a_run_reads_what_it_began_with_and_a_new_one_all(
    cached_run, tmp_path
):
    write_small(tmp_path, cached_run, 2000)
    options = {"passes": None, "rows": 500}
    whole, stopped = (source_of(open_stored(tmp_path), HOOK, **options) for _ in range(2))
    expected = list(islice(whole, 60))  # three passes
    before = list(islice(stopped, 7))
    state = json.loads(json.dumps(stopped.state_dict()))
    write_small(tmp_path, cached_run, 4000)
    during = [*before, *islice(stopped, 53)]
    assert all(t.equal(*each) for each in zip(during, expected, strict=True)), (
        "the cache grew while it was read"
    )
    resumed = source_of(open_stored(tmp_path), HOOK, **options)
    resumed.load_state_dict(state)
    after = zip(islice(resumed, 53), expected[7:], strict=True)
    assert all(t.equal(*each) for each in after)
    assert resumed.state_dict() == whole.state_dict()
    new = source_of(open_stored(tmp_path), HOOK, rows=500)
    assert len(batches_of(new)) > 35


def test_it_resumes_while_the_cache_grows(cached_run, tmp_path):
    """A growth that was stopped leaves files that the manifest doesn't know yet."""
    write_small(tmp_path, cached_run, 2000)
    source = source_of(open_stored(tmp_path), HOOK)
    list(islice(source, 3))
    state, expected = source.state_dict(), next(source)

    calls = count()

    def stop():
        if next(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_small(tmp_path, cached_run, 12_000, before_batch=stop)
    manifest = read_manifest(tmp_path)
    assert len(manifest.files) > manifest.finished
    resumed = source_of(open_stored(tmp_path), HOOK)
    resumed.load_state_dict(state)
    assert t.equal(next(resumed), expected)


@pytest.mark.parametrize("changed", ["other values of the same size", "another file"])
def test_it_does_not_resume_on_other_rows(changed, numbered):
    state = source_of(numbered).state_dict()
    path = Path(numbered.place) / "c.npy"
    if changed == "another file":
        np.save(Path(numbered.place) / "d.npy", np.ones((5, WIDTH), np.float32))
    else:
        np.save(path, np.load(path) + 1)
    with pytest.raises(ConfigError, match=re.escape(numbered.place)):
        source_of(open_stored(Path(numbered.place))).load_state_dict(state)


def test_what_is_left_out(small_cache, tiny_lm):
    stored = open_stored(small_cache)
    rows = load_from_disk(str(small_cache)).with_format("torch")[:]
    x, ids = rows[HOOK].reshape(-1, 16), rows["token_ids"].reshape(-1)
    is_bos = ids == tiny_lm.tokenizer.bos_token_id
    assert is_bos.any()
    source = source_of(stored, HOOK, remove_bos=True, seed=None, out_batch_size=1)
    found = t.cat(batches_of(source))
    assert t.equal(found, x[~is_bos])
    # 4,096 rows are judged together: all of a file here.
    source = source_of(stored, HOOK, max_norm_multiple=1.05, seed=None, out_batch_size=1)
    found = t.cat(batches_of(source))
    kept = []
    for file in x.split(1024):
        norms = file.norm(dim=1)
        kept.append(file[norms <= 1.05 * norms.median()])
    assert t.equal(found, t.cat(kept))
    assert 0 < len(found) < len(x)


@pytest.mark.parametrize("rows", [1000, 20_000])
def test_the_mean_squared_norm_is_that_of_the_first_fill(rows, numbered):
    """The second one is larger than the cache, and what it does not fill is not defined."""
    source = source_of(numbered, rows=rows, out_batch_size=1)
    source.activations.fill_(t.nan)
    (value,) = source.mean_squared_norms()
    assert source.tokens_seen == 0
    n = min(rows, N - N // 20)
    first = t.cat(list(islice(source, n)))
    assert value == pytest.approx(float(first.double().square().sum(1).mean()))


def test_a_row_that_is_not_finite_is_an_error(tmp_path):
    rows = np.ones((200, 3), np.float32)
    rows[17, 1] = np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(NonFiniteError, match=r"x\.npy"):
        next(source_of(open_stored(tmp_path)))


def test_the_end_says_what_to_do(numbered):
    source = source_of(numbered, rows=100)
    given = 100 * len(batches_of(source))
    said = error_of(lambda: next(source))
    assert all(part in said for part in (numbered.place, f" {given} ", " 100 ", "text_passes"))


def test_rows_without_tokens_have_no_beginning_of_text(numbered):
    with pytest.raises(ConfigError, match="remove_bos=False"):
        source_of(numbered, remove_bos=True)
