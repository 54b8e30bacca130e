"""Positions and bits: encoded, decoded, and refused where they lie."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adapterhub.merging import encodings
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
