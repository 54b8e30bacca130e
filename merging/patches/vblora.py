"""vblora: VB-LoRA as peft saves it: low-rank factors whose pieces are mixtures of a bank of vectors that all share.

Keys: the bank `base_model.vblora_vector_bank` (vectors, length); `vblora_logits_A` (r, in / length, vectors) and
`vblora_logits_B` (out / length, r, vectors), of which the topk largest count, by softmax; or, with
save_only_topk_weights, `…_topk_indices` and `…_topk_weights` of all but the last one, which is what is left of 1.
The delta is B·A, unscaled. Of equal logits at the last place the first one counts; which one peft takes depends on the
device, and files whose logits were rounded to bfloat16 have such ties.

Source: arXiv:2405.15179; peft 0.21 `tuners/vblora/{config,layer,model}.py`, _get_low_rank_matrix.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import whole
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, floats, peft_kind

_BANK = "vblora_vector_bank"
_FIELDS = {
    f".vblora_logits_{side}{form}": side + form for side in "AB" for form in ("", "_topk_indices", "_topk_weights")
}
_INDICES = {"U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
"""Dtypes of indices: the smallest that the bank's size allows."""


def _check(config: Mapping[str, Any], file: str) -> None:
    for key, default in (("r", 4), ("topk", 2)):
        whole(config.get(key, default), f"{file}: {key}")
    for key, default in (("num_vectors", 256), ("vector_length", 256)):
        whole(config.get(key, default), f"{file}: {key}", most=2**31)


def _mixtures(module: Module, side: str) -> tuple[int, ...]:
    """Shape of the mixtures of one side, without what each is of."""
    name = side if side in module.fields else side + "_topk_indices"
    return module.fields[name].shape[:-1]


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    bank, config = adapter.banks.get(_BANK), adapter.config
    vectors, length, topk = config.get("num_vectors", 256), config.get("vector_length", 256), config.get("topk", 2)
    r = config.get("r", 4)
    if bank is None or bank.shape != (vectors, length):
        found = "absent" if bank is None else bank.shape
        yield f"base_model.{_BANK} is {found}; {(vectors, length)} is expected"
        return
    for side in "AB":
        if side in module.fields:
            shapes = [(module.fields[side].shape, vectors)]
        else:
            names = (f"{side}_topk_indices", f"{side}_topk_weights")
            if not all(name in module.fields for name in names):
                yield f"has neither vblora_logits_{side} nor both its topk_indices and topk_weights"
                return
            (indices, weights) = (module.fields[name].shape for name in names)
            if indices[:-1] != weights[:-1]:
                yield f"{names[0]} is {indices} and {names[1]} {weights}: they are of different mixtures"
                return
            shapes = [(indices, topk), (weights, topk - 1)]
        for shape, last in shapes:
            if len(shape) != 3 or shape[-1] != last or shape[0 if side == "A" else 1] != r:
                where = (r, f"in / {length}") if side == "A" else (f"out / {length}", r)
                yield f"vblora_logits_{side} is {shape}; {(*where, last)} is expected"
                return
    if topk > vectors:
        yield f"topk is {topk} of {vectors} vectors"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank term, its factors mixed when they are read; stored indices are read and checked here."""
    bank, topk = adapter.banks[_BANK], adapter.config.get("topk", 2)
    for side in "AB":
        _check_indices(adapter, module, side, bank.shape[0])
    (r, inputs), (outputs, _) = _mixtures(module, "A"), _mixtures(module, "B")
    length = bank.shape[1]
    shape = (outputs * length, inputs * length)
    site, options = sites.weight(module.path, shape)

    def inputs_mixed() -> Array:
        return _mixed(module, "A", bank, topk).reshape(r, shape[1])

    def outputs_mixed() -> Array:
        return _mixed(module, "B", bank, topk).transpose(0, 2, 1).reshape(shape[0], r)

    fields = {"A": floats("A", (r, shape[1]), inputs_mixed), "B": floats("B", (shape[0], r), outputs_mixed)}
    yield SiteTerm(site, "lowrank", fields, options=options)


def _mixed(module: Module, side: str, bank: TensorHandle, topk: int) -> Array:
    """The mixtures of one side, float64 (…, length)."""
    if side in module.fields:
        logits = as_floats(module.fields[side])
        indices = np.argsort(-logits, axis=-1, kind="stable")[..., :topk]
        chosen = np.take_along_axis(logits, indices, -1)
        weights = np.exp(chosen - chosen.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    else:
        indices, stored = _indices(module, side), as_floats(module.fields[f"{side}_topk_weights"])
        weights = np.concatenate([stored, 1.0 - stored.sum(-1, keepdims=True)], -1)
    mixed: Array = np.einsum("...k,...kl->...l", weights, as_floats(bank)[indices])
    return mixed


def _indices(module: Module, side: str) -> Array:
    handle = module.fields[f"{side}_topk_indices"]
    return np.frombuffer(handle.read(), _INDICES[handle.dtype]).reshape(handle.shape).astype(np.int64)


def _check_indices(adapter: Adapter, module: Module, side: str, vectors: int) -> None:
    """Raises InvalidPatch for indices outside the bank."""
    if side in module.fields:
        return
    indices = _indices(module, side)
    if indices.size and not 0 <= indices.min() <= indices.max() < vectors:
        where = f"{adapter.file}: {module.path}: vblora_logits_{side}_topk_indices"
        raise InvalidPatch(f"{where} reach from {indices.min()} to {indices.max()}, and the bank has {vectors} vectors")


SPEC = peft_kind(
    Tuner(
        peft_type="VBLORA",
        fields=_FIELDS,
        required=(("A", "A_topk_indices"), ("B", "B_topk_indices")),
        banks=(_BANK,),
        shown=("r", "num_vectors", "vector_length", "topk", "save_only_topk_weights"),
        dtypes={f"{side}_topk_indices": frozenset(_INDICES) for side in "AB"},
        may_be_empty=frozenset({"A_topk_weights", "B_topk_weights"}),
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: _mixtures(module, "A")[0],
        terms=_terms,
    ),
    name="vblora",
    title="VB-LoRA",
    summary="Low-rank factors mixed from a bank of vectors that all modules share",
    source="arXiv:2405.15179, as peft saves it",
    has_factors=True,
)
