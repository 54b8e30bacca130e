"""shira: SHiRA as peft saves it: trained values at some entries of each weight.

Keys: `shira_weight` (n,) and `shira_indices` (2, n) int32, rows and columns, in row-major order as peft makes them.
The values are added as they are.

Source: arXiv:2406.13175; peft 0.21 `tuners/shira/{config,layer}.py`, get_delta_weight.
"""

from collections.abc import Iterator

import numpy as np

from adapterhub.merging.encodings import Array, as_array, ascending_order, in_order
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, peft_kind


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    val, idx = module.fields["val"].shape, module.fields["idx"].shape
    if len(val) != 1 or idx != (2, *val):
        yield f"shira_weight is {val} and shira_indices {idx}; (n,) and (2, n) are expected"


def _positions(adapter: Adapter, module: Module) -> Array:
    """Rows and columns, int64 (2, n), none negative. Raises InvalidPatch."""
    found: Array = as_array(module.fields["idx"]).astype(np.int64)
    if found.size and found.min() < 0:
        raise InvalidPatch(f"{adapter.file}: {module.path}: shira_indices holds {found.min()}; none is below 0")
    return found


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One sparse term; positions are read and checked here."""
    rows, columns = _positions(adapter, module)
    shape = sites.shape(module.path) or (2**31, 2**31)
    site, options = sites.matrix(module.path, None, shape[-1]) if sites.base else sites.weight(module.path, shape)
    if rows.size and (rows.max() >= shape[0] or columns.max() >= shape[1]):
        last = (int(rows.max()), int(columns.max()))
        raise InvalidPatch(f"{adapter.file}: {module.path}: shira_indices reach {last}, outside a weight of {shape}")
    order = ascending_order(rows * 2**32 + columns, f"{adapter.file}: {module.path}")
    fields = {"val": in_order(module.fields["val"], order), "idx": in_order(module.fields["idx"], order)}
    yield SiteTerm(site, "sparse", fields, options=options | {"index": "pairs"})


SPEC = peft_kind(
    Tuner(
        peft_type="SHIRA",
        fields={".shira_weight": "val", ".shira_indices": "idx"},
        required=(("val",), ("idx",)),
        shown=("r", "mask_type", "random_seed"),
        dtypes={"idx": frozenset({"I32", "I64"})},
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="shira",
    title="SHiRA",
    summary="Values added at some entries of each weight",
    source="arXiv:2406.13175, as peft saves it",
)
