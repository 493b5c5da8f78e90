"""Folders of a user's own activations: arrays of rows, whatever wrote them."""

import numpy as np
import pytest
import torch as t
from safetensors.torch import save_file

from dictionary_learning_ext.activations.own_activations import arrays_in, own_files
from dictionary_learning_ext.errors import ActivationsError


def rows(n, width=6, dtype=np.float32):
    return np.arange(n * width).reshape(n, width).astype(dtype)


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    np.save(tmp_path / "b.npy", rows(3))
    np.save(tmp_path / "a.npy", rows(5))
    save_file({"x": t.ones(4, 6), "y": t.zeros(2, 6)}, tmp_path / "c.safetensors")
    (tmp_path / "notes.txt").write_text("")
    found = own_files(tmp_path)
    assert [(file.path.name, file.rows, file.width) for file in found] == [
        ("a.npy", 5, 6),
        ("b.npy", 3, 6),
        ("c.safetensors", 6, 6),
    ]


@pytest.mark.parametrize("dtype", [t.float32, t.float16, t.bfloat16])
def test_arrays_of_a_safetensors_file_are_its_tensors(dtype, tmp_path):
    tensors = {"b": t.randn(3, 6).to(dtype), "a": t.randn(5, 6).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors", {"made": "here"})
    for array in arrays_in(tmp_path / "x.safetensors"):
        name = {3: "b", 5: "a"}[len(array)]
        found = t.from_numpy(np.array(array))
        assert t.equal(found.view(dtype), tensors[name])


def test_a_folder_without_arrays_has_none(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert own_files(tmp_path) == []


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (rows(3)[0], "float32 of shape (6,)"),
        (rows(8).reshape(2, 4, 6), "float32 of shape (2, 4, 6)"),
        (rows(3, dtype=np.float64), "float64 of shape (3, 6)"),
        (rows(3, dtype=np.int32), "int32 of shape (3, 6)"),
        (rows(3, dtype=np.uint16), "damaged (uint16)"),
        (rows(3, width=0), "float32 of shape (3, 0)"),
        (np.array([{}]), "damaged ("),
    ],
)
def test_what_is_no_array_of_rows_is_refused(array, said, tmp_path):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ActivationsError) as raised:
        own_files(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'a.npy'}: {said}")
    assert str(raised.value).endswith(
        "expected rows, (n, D), in float32 or float16, or in bfloat16 in a .safetensors file"
    )


def test_what_is_no_npy_file_is_not_called_a_pickle(tmp_path):
    (tmp_path / "a.npy").write_text("1 2 3 4 5 6\n")
    with pytest.raises(ActivationsError, match=r"a.npy: damaged \(the magic string is not correct"):
        own_files(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 20, -3])
def test_a_truncated_file_is_refused(keep, tmp_path):
    save_file({"x": t.ones(4, 6)}, tmp_path / "x.safetensors")
    np.save(tmp_path / "x.npy", rows(4))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ActivationsError, match="damaged"):
            list(arrays_in(path))


def test_unequal_widths_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", rows(4))
    np.save(tmp_path / "b.npy", rows(4, width=8))
    with pytest.raises(ActivationsError, match=r"b.npy: rows of width 8, expected 6 as in a.npy"):
        own_files(tmp_path)


def test_unequal_dtypes_are_refused(tmp_path):
    """The buffer has one: 1e5 in float16 is infinite."""
    np.save(tmp_path / "a.npy", rows(4, dtype=np.float16))
    np.save(tmp_path / "b.npy", rows(4))
    with pytest.raises(ActivationsError, match=r"b.npy: rows in float32, expected float16 as in a"):
        own_files(tmp_path)
    (tmp_path / "a.npy").unlink()
    save_file({"x": t.ones(2, 6), "y": t.ones(2, 6).bfloat16()}, tmp_path / "c.safetensors")
    with pytest.raises(
        ActivationsError, match=r"c.safetensors: rows in bfloat16, expected float32"
    ):
        own_files(tmp_path)
