"""gralora: GraLoRA as peft saves it: a module's weight cut into k x k blocks, each with low-rank factors of its own.

Keys: `gralora_A` (k, in / k, r) and `gralora_B` (k, r, out / k). The block of outputs p and inputs q gets the product
of B[p] at the q-th part of its ranks and A[q] at the p-th, parts of r / k ranks. With hybrid_r there is a LoRA beside,
`gralora_A_general.weight` (hybrid_r, in) and `gralora_B_general.weight` (out, hybrid_r). Scaling is alpha over r plus
hybrid_r for both. All blocks together are one LoRA of rank k·r, exactly.

Source: arXiv:2505.20355; peft 0.21 `tuners/gralora/{config,layer}.py`, get_delta_weight.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.encodings import Array, as_array
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import positive, whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, computed, peft_kind

_FIELDS = {
    ".gralora_A": "A",
    ".gralora_B": "B",
    ".gralora_A_general.weight": "A_general",
    ".gralora_B_general.weight": "B_general",
}


def _check(config: Mapping[str, Any], file: str) -> None:
    r, k = whole(config.get("r", 32), f"{file}: r"), whole(config.get("gralora_k", 2), f"{file}: gralora_k")
    whole(config.get("hybrid_r", 0), f"{file}: hybrid_r", least=0)
    positive(config.get("alpha", 64), f"{file}: alpha")
    if r % k:
        raise InvalidPatch(f"{file}: r is {r}, which gralora_k {k} does not divide")


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    r, k = adapter.config.get("r", 32), adapter.config.get("gralora_k", 2)
    hybrid_r = adapter.config.get("hybrid_r", 0)
    A, B = module.fields["A"].shape, module.fields["B"].shape
    general = [module.fields.get(name) for name in ("A_general", "B_general")]
    shapes = [None if one is None else one.shape for one in general]
    if len(A) != 3 or len(B) != 3 or (A[0], A[2]) != (k, r) or B[:2] != (k, r):
        yield f"gralora_A is {A} and gralora_B {B}; ({k}, in / {k}, {r}) and ({k}, {r}, out / {k}) are expected"
    elif shapes != ([(hybrid_r, k * A[1]), (k * B[2], hybrid_r)] if hybrid_r else [None, None]):
        yield f"its general factors are {shapes[0]} and {shapes[1]}, and {CONFIG} says hybrid_r {hybrid_r}"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank term for all blocks, and one for the general factors."""
    A, B = module.fields["A"], module.fields["B"]
    k, inputs, r = A.shape
    site, options = sites.weight(module.path, (k * B.shape[2], k * inputs))
    scaling = float(adapter.config.get("alpha", 64)) / (r + adapter.config.get("hybrid_r", 0))
    yield SiteTerm(site, "lowrank", {"A": _blocks_of_inputs(A), "B": _blocks_of_outputs(B)}, scaling, options)
    if "A_general" in module.fields:
        fields = {"A": module.fields["A_general"], "B": module.fields["B_general"]}
        yield SiteTerm(site, "lowrank", fields, scaling, options)


def _blocks_of_inputs(A: TensorHandle) -> TensorHandle:
    """(k·r, in): rank (q, p, s) holds A[q, :, (p, s)] at the inputs of block q."""
    k, inputs, r = A.shape

    def make() -> Array:
        stored = as_array(A).transpose(0, 2, 1)  # (k, r, in / k)
        expanded = np.zeros((k, r, k, inputs), stored.dtype)
        expanded[np.arange(k), :, np.arange(k)] = stored
        return expanded.reshape(k * r, k * inputs)

    return computed(A.name, A.dtype, (k * r, k * inputs), make)


def _blocks_of_outputs(B: TensorHandle) -> TensorHandle:
    """(out, k·r): rank (q, p, s) holds B[p, (q, s), :] at the outputs of block p."""
    k, r, outputs = B.shape

    def make() -> Array:
        stored = as_array(B).reshape(k, k, r // k, outputs)  # (p, q, s, out / k)
        expanded = np.zeros((k, outputs, k, k, r // k), stored.dtype)  # (p, out / k, q, p, s)
        expanded[np.arange(k), :, :, np.arange(k)] = stored.transpose(0, 3, 1, 2)
        return expanded.reshape(k * outputs, k * r)

    return computed(B.name, B.dtype, (k * outputs, k * r), make)


SPEC = peft_kind(
    Tuner(
        peft_type="GRALORA",
        fields=_FIELDS,
        required=(("A",), ("B",)),
        shown=("r", "alpha", "gralora_k", "hybrid_r"),
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: module.fields["A"].shape[2] + adapter.config.get("hybrid_r", 0),
        terms=_terms,
    ),
    name="gralora",
    title="GraLoRA",
    summary="Low-rank factors for each block of a module's weight",
    source="arXiv:2505.20355, as peft saves it",
    has_factors=True,
)
