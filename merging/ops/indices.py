"""Which entries of a tensor: packed bits and the encodings of sparse indices, as flat row-major positions."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch


def unpack_bits(bits: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Bits start..stop of packed uint8 (LSB first), as bool (stop - start,)."""
    import torch

    first = start // 8
    window = bits[first : (stop + 7) // 8]
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    unpacked = (window[:, None] >> shifts) & 1  # (bytes, 8)
    return unpacked.view(-1)[start - 8 * first : stop - 8 * first].bool()


def unpack_codes(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` whole numbers of so many bits in packed uint8 (least significant bit first), int64 (count,)."""
    import torch

    digits = unpack_bits(packed, 0, count * bits).view(count, bits).long()
    return digits @ (1 << torch.arange(bits, device=packed.device))


def flat_indices(fields: Mapping[str, torch.Tensor], index: str, shape: Sequence[int]) -> torch.Tensor:
    """The encoded positions over a tensor of this shape, int64 (nnz,), in the stored order.

    index: "flat" (idx (nnz,)), "pairs" (idx (2, nnz), rows and columns), "csr16" (crow (rows + 1,), col (nnz,)) or
    "bitmap" (bits (ceil(n / 8),)).
    Raises KeyError for another encoding or a missing field.
    """
    import torch

    decoders = {"flat": _from_flat, "pairs": _from_pairs, "csr16": _from_csr, "bitmap": _from_bitmap}
    return decoders[index](fields, shape).to(torch.int64)


def _from_flat(fields: Mapping[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    return fields["idx"]


def _from_pairs(fields: Mapping[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    import torch

    rows, columns = fields["idx"].to(torch.int64).unbind(0)
    return rows * prod(shape[1:]) + columns


def _from_csr(fields: Mapping[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    import torch

    crow, col = fields["crow"].to(torch.int64), fields["col"].to(torch.int64)
    rows = torch.repeat_interleave(torch.arange(crow.numel() - 1, device=crow.device), crow.diff())
    return rows * prod(shape[1:]) + col


def _from_bitmap(fields: Mapping[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    bits = fields["bits"]
    return unpack_bits(bits, 0, 8 * bits.numel()).nonzero().flatten()
