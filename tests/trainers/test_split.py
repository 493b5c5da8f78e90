"""A dictionary in two and in four parts, in as many processes, beside the whole one with the same noise."""

import pytest
import torch as t
from split_parts import CASES, FEW, STEPS, STOPPED, K, advance, restored, trainer_of
from variational_trainers import D, F, data

from dictionary_learning_ext.config.run import most_parts
from dictionary_learning_ext.trainers.split import SplitPart

pytestmark = [pytest.mark.slow, pytest.mark.commands]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def seen(four_ranks, folder):
    """What each part of four, and of two, saw. Two pairs of processes have shared out the cases of two."""
    ranks, _ = four_ranks.run(folder, {"split_parts": None})["split_parts"]
    of_four, of_two = ([rank[count] for rank in ranks] for count in (4, 2))
    merged = [
        one | {dtype: one[dtype] | other[dtype] for dtype in ("float64", "float32")}
        for one, other in zip(of_two[:2], of_two[2:], strict=True)
    ]
    return {4: of_four, 2: merged}


@pytest.mark.parametrize(("case", "count"), [*((c, 2) for c in CASES), *((c, 4) for c in FEW)])
def test_parts_are_the_whole_dictionary(case, count, seen):
    """After many steps of Adam, with dead features and clipped gradients."""
    for part in seen[count]:
        assert any(case in part[dtype] for dtype in ("float64", "float32"))
        for dtype, error in {"float64": 1e-12, "float32": 1e-6}.items():
            if (found := part[dtype].get(case)) is None:
                continue
            if case == "bf16":
                error = 2e-3
            assert found["weights"] <= error, dtype
            assert found["loss"] <= 20 * error, dtype
            assert found["metrics"] <= 20 * max(error, 1e-6), dtype
            assert found["fired"]
            assert found["clipped"]
            assert found["dead"] > 0 or "k above" in case


@pytest.mark.parametrize("count", [2, 4])
def test_what_all_parts_have_is_bit_identical(count, seen):
    for dtype in ("float64", "float32"):
        first, *others = (part[dtype] for part in seen[count])
        for case, found in first.items():
            assert all(other[case]["shared"] == found["shared"] for other in others), case


@pytest.mark.parametrize("count", [2, 4])
def test_they_begin_with_the_weights_of_a_trainer_without_parts(count, seen):
    assert all(part["start"] for part in seen[count])


@pytest.mark.parametrize("count", [2, 4])
def test_ties_and_nan_are_selected_once(count, seen):
    numbers_BF = t.randint(6, (50, F), generator=t.Generator().manual_seed(1)).float()
    numbers_BF[0, [3, F - 2]] = t.nan
    numbers_BF[1] = -t.inf
    of_parts = zip(*(part["selection"] for part in seen[count]), strict=True)
    rows = [[feature for part in parts for feature in part] for parts in of_parts]
    assert {3, F - 2} <= set(rows[0])
    for row, kept in zip(numbers_BF, rows, strict=True):
        assert len(set(kept)) == K
        values = row[kept].nan_to_num(nan=t.inf).sort().values
        assert t.equal(values, row.topk(K).values.nan_to_num(nan=t.inf).sort().values)


@pytest.mark.parametrize("count", [2, 4])
def test_a_step_that_is_not_finite_is_skipped_in_all_parts(count, seen):
    assert all(part["not finite"] == [1, True] for part in seen[count])


@pytest.mark.parametrize("count", [2, 4])
def test_a_step_sends_the_reconstruction_and_the_candidates(count, seen):
    """And a few numbers: b_dec's gradient, the norm, the KL and counts."""
    for part in seen[count]:
        for batch, found in part["sent"].items():
            candidates = 2 * batch * K  # of z, and of the means
            assert found["all_gather_into_tensor"] == 4 * candidates
            assert 0 <= found["all_reduce"] - 4 * (batch * D + D) <= 64


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_resume_takes_another_number_of_parts(count, seen, folder):
    if count > 1:
        assert all(part["resumed"] <= 1e-12 for part in seen[count])
        return
    trainer = restored("learned-both-all", SplitPart(F), folder / "split_parts" / "stopped_by_4")
    advance(trainer, range(STOPPED, STEPS))
    state = t.load(folder / "split_parts" / "stopped_by_4" / "ae.pt", weights_only=True)
    for name, value in trainer.ae.state_dict().items():
        t.testing.assert_close(value, state[name], rtol=0, atol=1e-12, msg=name)


def test_noise_is_standard_normal_and_another_in_every_step():
    trainer = trainer_of("fixed-both-all", SplitPart(F))
    drawn = []
    for step in range(3):
        trainer.part.start_step(step, 0, trainer.generator)
        drawn.append(trainer.part.draw(t.empty(4000, F), trainer.generator, t.Tensor.normal_))
    eps = t.stack(drawn)
    assert abs(eps.mean()) < 5 / eps.numel() ** 0.5
    assert eps.std().item() == pytest.approx(1, abs=0.01)
    correlations = t.corrcoef(eps.permute(1, 0, 2).reshape(4000, -1).T)  # of features and steps
    assert (correlations - t.eye(3 * F)).abs().max() < 0.1


def test_one_part_needs_no_processes():
    trainer = trainer_of("fixed-both-all", SplitPart(F))
    losses = [float(trainer.update(step, data(seed=step))) for step in range(STEPS)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("dict_size", "blocks"), [(48, 16), (65536, 64), (7, 1)])
def test_features_are_drawn_in_blocks(dict_size, blocks):
    assert most_parts(dict_size) == blocks
