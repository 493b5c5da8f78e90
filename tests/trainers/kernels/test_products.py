"""The products of a code with weights, in every form, against dense ones."""

import pytest
import torch as t
from recorded_ops import RecordedOps

from dictionary_learning_ext.trainers import matmuls
from dictionary_learning_ext.trainers.kernels.products import DenseCode, SparseCode, top_k_code
from dictionary_learning_ext.trainers.matmuls import Densities

BATCH, D, F, K = 24, 6, 40, 5


def forms(dtype):
    indices_BK = t.randn(BATCH, F, generator=t.Generator().manual_seed(1)).topk(K).indices
    return {
        "sparse": SparseCode(indices_BK, F, dtype),
        "sparse, dense projection": SparseCode(indices_BK, F, dtype, projects_densely=True),
        "dense": DenseCode(indices_BK, F, dtype, "code"),
    }


@pytest.mark.parametrize(("dtype", "error"), [(t.float32, 1e-6), (t.bfloat16, 0.02)])
@pytest.mark.parametrize("form", forms(t.float32))
def test_products(form, dtype, error):
    code = forms(dtype)[form]
    generator = t.Generator().manual_seed(0)
    values_BK = t.randn(BATCH, K, generator=generator)
    weight_FD = t.randn(F, D, generator=generator)
    rows_BD = t.randn(BATCH, D, generator=generator)
    code_BF = t.zeros(BATCH, F).scatter(1, code.indices_BK, values_BK)

    pairs = [
        (code.combine(values_BK, weight_FD), code_BF @ weight_FD),
        (code.project(rows_BD), (rows_BD @ weight_FD.T).gather(1, code.indices_BK)),
        (code.outer(values_BK, rows_BD), code_BF.T @ rows_BD),
        (code.outer(2 * values_BK, rows_BD), 2 * code_BF.T @ rows_BD),  # nothing is left over
    ]
    for got, expected in pairs:
        assert got.dtype == t.float32
        assert (got - expected).abs().max() <= error * expected.abs().max()


@pytest.mark.parametrize("dtype", [t.float32, t.bfloat16])
def test_a_sparse_codes_places_are_grouped_by_feature_in_the_order_of_a_stable_sort(dtype):
    """So sums over a feature's rows have the same bits. Features without a place are among them."""
    indices_BK = t.randint(3, F - 3, (BATCH, K), generator=t.Generator().manual_seed(0))
    code = SparseCode(indices_BK, F, dtype)
    code.outer(t.ones(BATCH, K), t.ones(BATCH, D))
    features, order = indices_BK.flatten().sort(stable=True)
    expected = order, order // K, t.searchsorted(features, t.arange(F))
    assert all(map(t.equal, code._grouped, expected))


@pytest.mark.parametrize("dict_size", [2**15, 2**16 + 1])
def test_the_last_features_of_a_wide_dictionary(dict_size):
    indices_BK = t.tensor([[dict_size - 1, 0], [1, dict_size - 2], [dict_size - 1, dict_size // 2]])
    code = SparseCode(indices_BK, dict_size, t.float32)
    values_BK = t.arange(1.0, 7).view(3, 2)
    rows_BD = t.tensor([[1.0, 10], [100, 1000], [3, 7]])
    code_BF = t.zeros(3, dict_size).scatter(1, indices_BK, values_BK)
    assert t.equal(code.outer(values_BK, rows_BD), code_BF.T @ rows_BD)
    weight_FD = t.arange(2.0 * dict_size).view(dict_size, 2)
    assert t.equal(code.combine(values_BK, weight_FD), code_BF @ weight_FD)


def test_two_dense_codes_at_once_do_not_share_memory():
    one, other = (
        DenseCode(t.full((BATCH, 1), place), F, t.float32, name)
        for place, name in ((0, "code"), (1, "aux_code"))
    )
    values, weight = t.ones(BATCH, 1), t.arange(F * D, dtype=t.float32).view(F, D)
    for _ in range(2):
        assert t.equal(one.combine(values, weight), weight[0].expand(BATCH, D))
        assert t.equal(other.combine(values, weight), weight[1].expand(BATCH, D))


@pytest.mark.parametrize(
    ("instructions", "k", "dict_size", "dtype", "form_made"),
    [
        ("AMX", 64, 2048, t.float32, "sparse"),
        ("AMX", 512, 2048, t.float32, "dense"),
        ("AMX", 64, 2048, t.bfloat16, "mixed"),
        ("AMX", 512, 2048, t.bfloat16, "dense"),
        ("AMX", 64, 32768, t.bfloat16, "sparse"),
        (None, 64, 2048, t.bfloat16, "sparse"),
        (None, 512, 2048, t.bfloat16, "mixed"),
        (None, 512, 2048, t.float32, "dense"),
    ],
)
def test_the_form_is_chosen_by_density_and_instructions(
    instructions, k, dict_size, dtype, form_made, monkeypatch
):
    monkeypatch.setattr(matmuls, "bf16_instructions", lambda: instructions)
    with RecordedOps() as ops:
        code = top_k_code(t.zeros(2, k, dtype=t.long), dict_size, dtype)
        code.combine(t.ones(2, k), t.ones(dict_size, 3))
        code.project(t.ones(2, 3))
    assert ops.code_form == form_made


def test_with_amx_dense_products_are_worth_it_sooner(monkeypatch):
    found = []
    for instructions in ("AMX", "AVX-512"):
        monkeypatch.setattr(matmuls, "bf16_instructions", lambda name=instructions: name)
        found.append(Densities.here(t.bfloat16))
    assert all(0 < one < other for one, other in zip(*found, strict=True))


@pytest.fixture
def deterministic():
    t.use_deterministic_algorithms(True)
    yield
    t.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [t.float32, t.bfloat16])
def test_where_torch_must_be_deterministic_the_dense_products_are_the_same(dtype, deterministic):
    generator = t.Generator().manual_seed(0)
    values_BK = t.randn(BATCH, K, generator=generator)
    weight_FD, rows_BD = (t.randn(n, D, generator=generator) for n in (F, BATCH))

    def products_of(code):
        return (
            code.combine(values_BK, weight_FD),
            code.project(rows_BD),
            code.outer(values_BK, rows_BD),
        )

    found = products_of(forms(dtype)["dense"])
    t.use_deterministic_algorithms(False)
    assert all(map(t.equal, found, products_of(forms(dtype)["dense"])))
