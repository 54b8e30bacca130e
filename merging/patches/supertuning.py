"""supertuning: Super-Tuning as peft saves it: values at the largest entries of each weight, maybe a low-rank part.

Keys: `supertuning_values` (n,), `supertuning_indices` (n,) int32, row-major positions from the largest entry down, so
not in order; with r set, `supertuning_lora_A.weight` (r, in) and `supertuning_lora_B.weight` (out, r), scaled by
lora_alpha / r. Without save_precomputed_indices the file does not say where its values belong: refused.

Source: arXiv:2607.09287; peft 0.21 `tuners/supertuning/{config,layer}.py`, get_delta_weight.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from adapterhub.merging.encodings import Array, as_array, ascending_order, in_order
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import positive, whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, peft_kind

_FIELDS = {
    ".supertuning_values": "val",
    ".supertuning_indices": "idx",
    ".supertuning_lora_A.weight": "A",
    ".supertuning_lora_B.weight": "B",
}


def _check(config: Mapping[str, Any], file: str) -> None:
    if config.get("r") is not None:
        whole(config["r"], f"{file}: r")
        positive(config.get("lora_alpha"), f"{file}: lora_alpha")


def _why_not(config: Mapping[str, Any]) -> str | None:
    if config.get("save_precomputed_indices") is False:
        return (
            "save_precomputed_indices is false: the file does not hold supertuning_indices, which peft takes from the "
            "base's magnitudes again, where equal ones have no order; save the adapter with save_precomputed_indices"
        )
    return None


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    val, idx = module.fields["val"].shape, module.fields["idx"].shape
    A, B, r = module.fields.get("A"), module.fields.get("B"), adapter.config.get("r")
    if len(val) != 1 or idx != val:
        yield f"supertuning_values is {val} and supertuning_indices {idx}; one position a value is expected"
    elif (A is None) != (r is None) or (B is None) != (r is None):
        yield f"has {'a' if A or B else 'no'} low-rank part, and {CONFIG} says r {r}"
    elif A is not None and B is not None and (A.shape[:1], len(A.shape), B.shape[1:]) != ((r,), 2, (r,)):
        yield f"supertuning_lora_A is {A.shape} and supertuning_lora_B {B.shape}; {CONFIG} says r {r}"


def _positions(adapter: Adapter, module: Module, numel: int) -> Array:
    """Flat positions, int64 (n,), inside a weight of so many entries. Raises InvalidPatch."""
    found: Array = as_array(module.fields["idx"]).astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < numel:
        reach = f"{found.min()} to {found.max()}, outside a weight of {numel} entries"
        raise InvalidPatch(f"{adapter.file}: {module.path}: supertuning_indices reach from {reach}")
    return found


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One sparse term, and a lowrank one; positions are read, checked and put in order here."""
    shape = sites.shape(module.path)
    site, options = sites.matrix(module.path, None, shape[-1] if shape else 1)
    order = ascending_order(
        _positions(adapter, module, prod(shape) if shape else 2**63), f"{adapter.file}: {module.path}"
    )
    fields = {"val": in_order(module.fields["val"], order), "idx": in_order(module.fields["idx"], order)}
    yield SiteTerm(site, "sparse", fields, options=options | {"index": "flat"})
    if "A" in module.fields:
        A, B = module.fields["A"], module.fields["B"]
        site, options = sites.matrix(module.path, B.shape[0], A.shape[1])
        yield SiteTerm(site, "lowrank", {"A": A, "B": B}, float(adapter.config["lora_alpha"]) / A.shape[0], options)


SPEC = peft_kind(
    Tuner(
        peft_type="SUPERTUNING",
        fields=_FIELDS,
        required=(("val",), ("idx",)),
        shown=("sparsity", "select_top", "r", "lora_alpha"),
        dtypes={"idx": frozenset({"I32", "I64"})},
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: module.fields["A"].shape[0] if "A" in module.fields else None,
        why_not=_why_not,
        terms=_terms,
    ),
    name="supertuning",
    title="Super-Tuning",
    summary="Values added at the largest entries of each weight, with or without a low-rank part",
    source="arXiv:2607.09287, as peft saves it",
)
