"""sparse: W with weight · val added at some entries.

Fields: val (nnz,) in any float dtype, and where they go, counted row-major over W as stored, ascending and unique.
Options: index, "flat" (field idx), "pairs" (idx, rows and columns), "csr16" (crow, col) or "bitmap" (bits, LSB first).
Source: PEFT's SHiRA (arXiv:2406.13175) and Supertuning store the same numbers; the encodings are the native format's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.merging.encodings import DECODERS, decode_indices
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.ops.indices import flat_indices
from adapterhub.merging.registry import Apply, Parameter, Part, Stored, TermSpec, stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from adapterhub.merging.encodings import Array


def _prepare(parts: Sequence[Part], W: torch.Tensor) -> Apply:
    """The effect of adding weight · val at the indexed entries."""
    entries = [(flat_indices(part.fields, part.options["index"], W.shape), part) for part in parts]

    def apply(tile: torch.Tensor, start: int, stop: int) -> None:
        import torch

        first, last = start * tile.shape[1], stop * tile.shape[1]
        for idx, part in entries:
            a, b = torch.searchsorted(idx, torch.tensor([first, last], device=idx.device)).tolist()
            values = part.fields["val"][a:b].to(tile.dtype) * part.weight
            tile.view(-1).index_add_(0, idx[a:b] - first, values)  # unique indices: no order to depend on

    return apply


def _norm(part: Part, shape: Sequence[int]) -> float:
    return float(part.fields["val"].double().norm()) * abs(part.weight)


def _entries(part: Part, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    positions = flat_indices(part.fields, part.options["index"], shape)
    return positions, part.fields["val"].float() * part.weight


def _misfit(term: Stored) -> str | None:
    index = term.options.get("index", "flat")
    wanted = {"val", *DECODERS[index][0]}
    found = sorted(term.fields)
    return None if wanted == set(found) else f"has the fields {found}; {sorted(wanted)} are expected of index {index!r}"


def _bad_value(term: Stored, values: Mapping[str, Array]) -> str | None:
    try:
        indices = decode_indices(term.options.get("index", "flat"), values, term.shape)
    except InvalidPatch as error:
        return str(error)
    count = term.sizes["nnz"]
    return None if count == indices.size else f"({count},) values for {indices.size} positions"


SPEC = TermSpec(
    name="sparse",
    summary="Values added at some entries of W",
    fields={
        "val": stored("nnz"),
        "idx": stored("nnz", dtypes=["I32", "I64"], is_optional=True),
        "crow": stored("starts", dtypes=["I32", "I64"], is_optional=True),
        "col": stored("nnz", dtypes=["U16"], is_optional=True),
        "bits": stored("bytes", dtypes=["U8"], is_optional=True),
    },
    effect="additive",
    order=20,
    prepare=_prepare,
    norm=_norm,
    options=(Parameter("index", "str", "flat", "how positions are stored", choices=tuple(DECODERS)),),
    misfit=_misfit,
    bad_value=_bad_value,
    entries=_entries,
    entry_count=lambda shapes: shapes["val"][0],
)
