"""spiel: sparse fine-tuning with moving positions (SpIEL), as its authors' fork of peft saves it (peft_type SFT).

Keys: `sft_delta.values` (k,) float and `sft_delta.indices` (k,) int32, row-major positions in the weight as stored, in
any order; values that stand at one position twice are summed, in float64.

Source: arXiv:2401.16405; AlanAnsell/peft `tuners/sft/{config,layer}.py`, SparseDelta.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from adapterhub.merging.encodings import Array, as_array, as_floats
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, computed, floats, peft_kind


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    val, idx = module.fields["val"].shape, module.fields["idx"].shape
    if len(val) != 1 or idx != val:
        yield f"sft_delta.values is {val} and sft_delta.indices {idx}; one position a value is expected"


def _positions(adapter: Adapter, module: Module, numel: int) -> Array:
    """Flat positions, int64 (k,), inside a weight of so many entries. Raises InvalidPatch."""
    found: Array = as_array(module.fields["idx"]).astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < numel:
        reach = f"{found.min()} to {found.max()}, outside a weight of {numel} entries"
        raise InvalidPatch(f"{adapter.file}: {module.path}: sft_delta.indices reach from {reach}")
    return found


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One sparse term; positions are read, checked and put in order here, values when they are asked for."""
    shape = sites.shape(module.path)
    site, options = sites.matrix(module.path, None, shape[-1] if shape else 1)
    positions, inverse = np.unique(_positions(adapter, module, prod(shape) if shape else 2**63), return_inverse=True)

    def summed() -> Array:
        total = np.zeros(len(positions))
        np.add.at(total, inverse, as_floats(module.fields["val"]))
        return total

    val, idx = module.fields["val"], module.fields["idx"]
    fields = {
        "val": floats(val.name, positions.shape, summed),
        "idx": computed(idx.name, "I64", positions.shape, lambda: positions.astype("<i8")),
    }
    yield SiteTerm(site, "sparse", fields, options=options | {"index": "flat"})


SPEC = peft_kind(
    Tuner(
        peft_type="SFT",
        fields={".sft_delta.values": "val", ".sft_delta.indices": "idx"},
        required=(("val",), ("idx",)),
        shown=("density", "num_tunable_weights", "selection_algorithm"),
        dtypes={"idx": frozenset({"I32", "I64"})},
        may_be_empty=frozenset({"val", "idx"}),
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="spiel",
    title="SpIEL",
    summary="Values at some entries, which moved while it was trained",
    source="arXiv:2401.16405, as its fork of peft saves it",
)
