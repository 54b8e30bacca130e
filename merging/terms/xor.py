"""xor: the bits of W exclusive-or stored bits: a fine-tuned tensor kept exactly, beside its base.

Fields: bits, the shape of W, uint16 for float16 and bfloat16, int32 for float32, int64 for float64. Options: dtype, the
safetensors name of W's dtype; base_digest, W's digest as in `fingerprint.tensor_digest`.
The bits mean nothing on other values, so the term takes no weight but 1, no other term on its site and no other base;
NotFoldable says which of these it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.fingerprint import tensor_digest
from adapterhub.merging.ops.tensors import as_matrix, dtype_name, to_bytes
from adapterhub.merging.registry import Apply, Parameter, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_WIDTHS = {"F16": "U16", "BF16": "U16", "F32": "I32", "F64": "I64"}


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of one part of weight 1. Raises NotFoldable for anything but the very base the bits were made for."""
    import torch

    if len(parts) != 1:
        raise NotFoldable("an xor term stands for one tensor's bits; two of them on one parameter have no meaning")
    (part,) = parts
    if part.weight != 1.0:
        raise NotFoldable(f"an xor term is exact bits and takes the weight 1 alone, not {part.weight}")
    dtype = dtype_name(W.dtype)
    if dtype != part.options["dtype"]:
        raise NotFoldable(f"an xor term for {part.options['dtype']} values; the base's are {dtype} here")
    digest = tensor_digest(TensorHandle.of_bytes("W", dtype, tuple(W.shape), to_bytes(W)))
    if digest != part.options["base_digest"]:
        raise NotFoldable(
            f"an xor term for a base whose tensor is {part.options['base_digest']}; this one's is {digest}"
        )
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[W.element_size()]
    rows, bits = as_matrix(W), as_matrix(part.fields["bits"]).view(integers)

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        tuned = (rows[start:stop].contiguous().view(integers) ^ bits[start:stop]).view(W.dtype)
        tile.copy_(tuned)

    return apply


def _norm(part: Part, shape: Sequence[int]) -> None:
    """None: bits have no size without W."""


def _misfit(term: Stored) -> str | None:
    if not term.options.get("base_digest"):
        return "has no base_digest, so nobody can tell whose bits it changes"
    return None


SPEC = TermSpec(
    name="xor",
    summary="The bits of a fine-tuned tensor, exact on its own base alone",
    fields={"bits": stored("W", dtypes=sorted(set(_WIDTHS.values())))},
    effect="replace",
    order=0,
    prepare=_prepare,
    norm=_norm,
    options=(
        Parameter("dtype", "str", "F32", "W's dtype", choices=tuple(_WIDTHS)),
        Parameter("base_digest", "str", "", "the digest of W"),
    ),
    misfit=_misfit,
    is_exact=True,
)
