"""Positions and bits: encoded, decoded, and refused where they lie."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapterhub.merging import encodings
from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import InvalidPatch

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9)
masks = shapes.flatmap(lambda shape: hnp.arrays(bool, shape))


@given(selected=masks, index=st.sampled_from(["flat", "csr16", "bitmap", None]))
def test_every_index_encoding_gives_the_positions_back(selected: Any, index: str | None) -> None:
    positions = np.flatnonzero(selected)
    name, fields = encodings.encode_indices(positions, selected.shape, index)
    arrays = {key: array for key, (_, array) in fields.items()}
    assert np.array_equal(encodings.decode_indices(name, arrays, selected.shape), positions)


@given(selected=masks)
def test_bits_are_packed_and_unpacked(selected: Any) -> None:
    assert np.array_equal(encodings.unpack_bits(encodings.pack_bits(selected), selected.size), selected.reshape(-1))


def test_the_smallest_encoding_is_taken() -> None:
    assert encodings.encode_indices(np.arange(3), (10, 10))[0] == "csr16"
    assert encodings.encode_indices(np.arange(30), (10, 10))[0] == "bitmap"
    assert encodings.encode_indices(np.arange(3), (100,))[0] == "flat"
    assert encodings.encode_indices(np.arange(3), (2, 70_000))[0] == "flat"


@pytest.mark.parametrize(
    ("index", "fields", "shape"),
    [
        ("flat", {"idx": [1, 1]}, (4,)),
        ("flat", {"idx": [2, 1]}, (4,)),
        ("flat", {"idx": [4]}, (4,)),
        ("flat", {"idx": [-1, 0]}, (4,)),
        ("flat", {}, (4,)),
        ("csr16", {"crow": [0, 1, 1], "col": [2]}, (2, 2)),
        ("csr16", {"crow": [0, 2, 1], "col": [0]}, (2, 2)),
        ("csr16", {"crow": [0, 1], "col": [0]}, (2, 2)),
        ("csr16", {"crow": [1, 1, 1], "col": [0]}, (2, 2)),
        ("csr16", {"crow": [0, 2, 2], "col": [1, 0]}, (2, 2)),
        ("bitmap", {"bits": [0, 0]}, (8,)),
        ("bitmap", {"bits": [128]}, (7,)),
        ("varint", {}, (8,)),
    ],
)
def test_indices_that_lie_are_refused(index: str, fields: dict[str, list[int]], shape: tuple[int, ...]) -> None:
    arrays = {name: np.array(values, np.uint8 if name == "bits" else np.int64) for name, values in fields.items()}
    with pytest.raises(InvalidPatch):
        encodings.decode_indices(index, arrays, shape)


@given(keys=st.lists(st.integers(0, 2**40), unique=True, max_size=20), seed=st.integers(0, 99))
def test_entries_are_put_in_ascending_order_with_their_values(keys: list[int], seed: int) -> None:
    positions = np.random.default_rng(seed).permutation(np.array(keys, np.int64))
    order = encodings.ascending_order(positions, "here")
    handles = [
        TensorHandle.of_bytes(name, "I64", positions.shape, array.tobytes())
        for name, array in (("idx", positions), ("val", positions * 3))
    ]
    idx, val = (encodings.as_array(encodings.in_order(handle, order)) for handle in handles)
    assert idx.tolist() == sorted(keys)
    assert (val == 3 * idx).all()


@given(keys=st.lists(st.integers(0, 9), min_size=11, max_size=20))
def test_an_entry_that_is_listed_twice_is_refused(keys: list[int]) -> None:
    with pytest.raises(InvalidPatch, match="here: an entry of the weight is listed twice"):
        encodings.ascending_order(np.array(keys, np.int64), "here")


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_stored_floats_are_read_without_loss(name: str, dtype: torch.dtype) -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    handle = TensorHandle.of_bytes("x", name, (5, 3), values.view(torch.uint8).numpy().tobytes())
    assert np.array_equal(encodings.as_floats(handle), values.double().numpy())


def test_what_holds_no_floats_is_refused() -> None:
    with pytest.raises(InvalidPatch, match="I64 holds no floats"):
        encodings.as_floats(TensorHandle.of_bytes("x", "I64", (1,), bytes(8)))
