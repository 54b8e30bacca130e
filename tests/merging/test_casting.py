"""Models rounded while they are read: as torch rounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.casting import cast
from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.ops.tensors import from_bytes, to_bytes

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NARROWER = [
    *(("F64", one) for one in ("F32", "F16", "BF16")),
    *(("F32", one) for one in ("F16", "BF16")),
    ("BF16", "F16"),
    ("F16", "BF16"),
]


def handle_of(tensor: torch.Tensor, dtype: str) -> TensorHandle:
    return TensorHandle.of_bytes("w", dtype, tuple(tensor.shape), bytes(to_bytes(tensor)))


@pytest.mark.parametrize(("stored", "dtype"), NARROWER)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_a_tensor_is_rounded_as_torch_does(stored: str, dtype: str, values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(DTYPES[stored])
    found = cast(handle_of(tensor, stored), dtype)
    assert (found.dtype, found.shape) == (dtype, (len(values),))
    made = from_bytes(found.read(), dtype, found.shape)
    torch.testing.assert_close(made, tensor.to(DTYPES[dtype]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("stored", "dtype"), [("BF16", "F32"), ("F16", "F32"), ("F32", "F32"), ("F32", "F64")])
def test_what_loses_nothing_stays_as_it_is(stored: str, dtype: str) -> None:
    handle = handle_of(torch.ones(3, dtype=DTYPES[stored]), stored)
    assert cast(handle, dtype) is handle


def test_whole_numbers_stay() -> None:
    handle = TensorHandle.of_bytes("ids", "I64", (1,), (7).to_bytes(8, "little"))
    assert cast(handle, "BF16") is handle
