"""Tables in the order of another vocabulary, against torch row by row in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.merging.ops import vocabulary
from adapterhub.merging.ops.tensors import dtype_name, from_bytes, to_bytes
from adapterhub.merging.ops.vocabulary import Fills, Table, reindexed

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def table(tensor: torch.Tensor) -> Table:
    return Table.of_bytes(to_bytes(tensor), dtype_name(tensor.dtype), tensor.shape[0])


def tensor_of(bits: vocabulary.Array, dtype: str) -> torch.Tensor:
    return from_bytes(memoryview(bits.reshape(-1).view(np.uint8).data), dtype, bits.shape).clone()


def no_fills(tables: int) -> Fills:
    return Fills(np.zeros(0, np.int64), np.zeros((tables, 0), np.int64))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.float8_e4m3fn], ids=str)
def test_rows_that_move_are_index_select(dtype: torch.dtype) -> None:
    own = torch.arange(15.0).view(5, 3).to(dtype)
    rows = torch.tensor([4, 0, 0, 2])
    found = reindexed(0, [table(own)], rows.numpy(), no_fills(1), total=4, dtype=dtype_name(dtype))
    assert torch.equal(tensor_of(found, dtype_name(dtype)).float(), own.float().index_select(0, rows))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_row_is_the_own_one_a_mean_zero_or_padding(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES[:3]), min_size=1, max_size=3))
    sizes = [data.draw(st.integers(1, 6)) for _ in dtypes]
    given = [torch.randn(size, 4, generator=generator).to(one) for size, one in zip(sizes, dtypes, strict=True)]
    rows = data.draw(st.lists(st.integers(-1, sizes[0] - 1), min_size=1, max_size=12))
    lacking = [number for number, row in enumerate(rows) if row < 0]
    fills = [[data.draw(st.integers(-1, size - 1)) for _ in lacking] for size in sizes]
    total = len(rows) + data.draw(st.integers(0, 3))
    held = Fills(np.array(lacking, np.int64), np.array(fills, np.int64).reshape(len(sizes), len(lacking)))
    found = reindexed(0, [table(one) for one in given], np.array(rows), held, total=total, dtype="F32")
    expected = torch.zeros(total, 4, dtype=torch.float64)
    for number, row in enumerate(rows):
        if row >= 0:
            expected[number] = given[0][row].double()
            continue
        place = lacking.index(number)
        parts = [one[here[place]].double() for one, here in zip(given, fills, strict=True) if here[place] >= 0]
        expected[number] = torch.stack(parts).mean(0) if parts else 0
    expected[len(rows) :] = expected[: len(rows)].mean(0)
    torch.testing.assert_close(tensor_of(found, "F32").double(), expected, rtol=1e-6, atol=1e-6)


def test_rows_taken_from_another_table_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of one row each, too."""
    monkeypatch.setattr(vocabulary, "BLOCK_ELEMENTS", 1)
    own, other = torch.randn(3, 5).bfloat16(), torch.randn(4, 5).bfloat16()
    fills = Fills(np.array([1, 2]), np.array([[-1, -1], [3, -1]]))
    found = reindexed(0, [table(own), table(other)], np.array([2, -1, -1, 0]), fills, total=4, dtype="BF16")
    assert torch.equal(tensor_of(found, "BF16"), torch.stack([own[2], other[3], torch.zeros(5).bfloat16(), own[0]]))


def test_a_bias_has_one_column() -> None:
    found = reindexed(0, [table(torch.tensor([1.0, 2.0]))], np.array([1, 0]), no_fills(1), total=3, dtype="F32")
    assert tensor_of(found, "F32").flatten().tolist() == [2.0, 1.0, 1.5]


def test_an_empty_table_stays_empty() -> None:
    found = reindexed(0, [table(torch.zeros(3, 0))], np.array([1, 0]), no_fills(1), total=2, dtype="F32")
    assert found.shape == (2, 0)
