"""The scan for NaN and infinity, against torch's own answer."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapterhub.merging import finiteness
from adapterhub.merging.checkpoint import LocalFolder, TensorHandle
from adapterhub.merging.ops.tensors import dtype_name, to_bytes

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
numbers = st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), max_size=40)


@given(values=numbers, dtype=st.sampled_from(FLOATS))
def test_the_first_value_that_is_not_finite_is_found(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    bad = (~tensor.isfinite()).nonzero().flatten().tolist()
    handle = TensorHandle.of_bytes("w", dtype_name(dtype), tuple(tensor.shape), to_bytes(tensor))
    assert finiteness.non_finite(handle) == ((bad[0], len(bad)) if bad else None)


@pytest.mark.parametrize(("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_byte_of_fp8_is_judged_as_torch_does(name: str, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    for byte, is_finite in zip(every, every.view(dtype).float().isfinite(), strict=True):
        handle = TensorHandle.of_bytes("w", name, (1,), bytes([int(byte)]))
        assert (finiteness.non_finite(handle) is None) == bool(is_finite)


def test_the_last_value_of_a_large_tensor_is_looked_at_in_little_memory() -> None:
    large = np.zeros(8 * finiteness.PIECE_BYTES // 4, np.float32)
    large[-1] = np.inf
    handle = TensorHandle.of_bytes("w", "F32", large.shape, memoryview(large.data).cast("B"))
    tracemalloc.start()
    assert finiteness.non_finite(handle) == (large.size - 1, 1)
    assert tracemalloc.get_traced_memory()[1] < 3 * finiteness.PIECE_BYTES
    tracemalloc.stop()


def test_integers_are_never_wrong(tmp_path: Path) -> None:
    save_file({"n": torch.full((3,), -1)}, tmp_path / "model.safetensors")
    assert list(finiteness.problems(LocalFolder(tmp_path), ["model.safetensors", "config.json"])) == []


def test_the_problem_names_file_tensor_and_place(tmp_path: Path) -> None:
    values = torch.zeros(3, 4, dtype=torch.bfloat16)
    values[1, 2] = torch.nan
    save_file({"a": torch.zeros(2), "w": values}, tmp_path / "model.safetensors")
    (found,) = finiteness.problems(LocalFolder(tmp_path), ["model.safetensors"])
    assert found.startswith("model.safetensors: tensor w holds NaN or infinity, first at (1, 2), 1 of 12 numbers")
