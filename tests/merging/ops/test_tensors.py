import pytest
import torch

from adapterhub.merging.ops.tensors import as_matrix, dtype_name, from_bytes, is_finite, to_bytes, torch_dtype

DTYPES = ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 5)])
def test_bytes_become_a_tensor_and_bytes_again(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(torch_dtype(dtype))
    data = bytes(to_bytes(tensor))
    back = from_bytes(data, dtype, shape)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert bytes(to_bytes(back)) == data
    assert dtype_name(back.dtype) == dtype


def test_a_tensor_shares_aligned_bytes_and_keeps_them_alive() -> None:
    buffer = bytearray(torch.arange(4, dtype=torch.int64).numpy().tobytes())
    tensor = from_bytes(memoryview(buffer).toreadonly(), "I64", (4,))
    buffer[0] = 9
    assert tensor.tolist() == [9, 1, 2, 3]
    del buffer
    assert tensor.tolist() == [9, 1, 2, 3]


def test_unaligned_bytes_are_copied() -> None:
    data = b"x" + torch.arange(4, dtype=torch.int64).numpy().tobytes()
    assert from_bytes(memoryview(data)[1:], "I64", (4,)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_is_seen(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.ones(1000, dtype=dtype)
    assert is_finite(tensor)
    tensor[500] = bad
    assert not is_finite(tensor)


def test_an_empty_tensor_is_finite() -> None:
    assert is_finite(torch.zeros(0))


@pytest.mark.parametrize(
    ("shape", "matrix"), [((), (1, 1)), ((4,), (4, 1)), ((2, 3), (2, 3)), ((2, 3, 5), (2, 15)), ((0,), (0, 0))]
)
def test_any_tensor_is_seen_as_rows(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert as_matrix(torch.zeros(shape)).shape == matrix
