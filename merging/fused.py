"""A LoRA of separate projections as one of the fused parameter that other checkpoints store, and back: exact.

Fusing gives each projection's B its rows of the fused one, zeros elsewhere, so that A's of q, k and v stacked and B's
on a block diagonal are one LoRA of their ranks' sum. Splitting takes the rows of B; A is every part's. The rows of a
fused query, key and value are one after another (Phi-3, GPT-2), or by group of heads (Falcon, GPT-NeoX, Bloom): the
group's queries, then its key, then its value. Never imports torch.

Source: transformers 5 `models/{phi3,gpt2,falcon,gpt_neox,bloom}/modeling_*.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.encodings import Array, as_array
from adapterhub.merging.errors import NotRepresentable, ShapeMismatch
from adapterhub.merging.folders import json_digest
from adapterhub.merging.patch import Patch, SiteTerm
from adapterhub.merging.peft_adapter import computed
from adapterhub.merging.sites import is_conv1d, naming

LAYOUTS = ("fused", "split")
Layout = Literal["fused", "split"]

Rows = Mapping[str, Array]
"""Which rows of a fused module are those of each part, by the part's name."""

_ATTENTION = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Heads:
    """Sizes of attention. groups: of heads that share a key; heads: queries; size: rows of each."""

    heads: int
    groups: int
    size: int


def _stacked(heads: Heads) -> Rows:
    counts = (heads.heads * heads.size, heads.groups * heads.size, heads.groups * heads.size)
    edges = np.cumsum((0, *counts))
    return {name: np.arange(edges[n], edges[n + 1]) for n, name in enumerate(_ATTENTION)}


def _by_group(heads: Heads) -> Rows:
    per = heads.heads // heads.groups
    rows = np.arange(heads.groups * (per + 2) * heads.size).reshape(heads.groups, per + 2, heads.size)
    cuts = zip(_ATTENTION, (slice(0, per), slice(per, per + 1), slice(per + 1, None)), strict=True)
    return {name: rows[:, cut].reshape(-1) for name, cut in cuts}


_BY_MODEL_TYPE: Mapping[str, tuple[str, Callable[[Heads], Rows]]] = {
    "phi3": ("qkv_proj", _stacked),
    "gpt2": ("c_attn", _stacked),
    "falcon": ("query_key_value", _by_group),
    "gpt_neox": ("query_key_value", _by_group),
    "bloom": ("query_key_value", _by_group),
}
"""The fused attention of each architecture, and how its rows lie."""

_CALLED: Mapping[str, tuple[str, ...]] = {"qkv_proj": _ATTENTION, "gate_up_proj": ("gate_proj", "up_proj")}
"""Fused modules whose rows lie one part after another wherever they have this name."""

_GATED = {"phi3": ("gate_up_proj", ("gate_proj", "up_proj"))}


def relaid(patch: Patch, layout: Layout, base: Checkpoint) -> Patch:
    """The patch in the layout of a base whose configuration says how the fused rows lie; other modules as they are.

    The patch carries its own names, as read without a base. Raises NotRepresentable for an architecture that fuses
    nothing here, for terms other than low-rank ones on a module that changes, for DoRAs that would be fused, and where
    no module changes; ShapeMismatch where rows are of another number.
    """
    fused = fused_modules(base)
    make = _split if layout == "split" else _fused
    terms = [one for term in patch.terms for one in make(term, fused, base)]
    if [one.site for one in terms] == [one.site for one in patch.terms]:
        named = ", ".join(fused if layout == "split" else [part for rows in fused.values() for part in rows])
        raise NotRepresentable(f"--layout {layout}: the patch is on none of {named}; it has that layout already")
    if layout == "fused":
        _check_stored(terms, base)
    return replace(patch, digest=json_digest([patch.digest, layout]), terms=tuple(sorted(terms, key=lambda t: t.site)))


def parted(patch: Patch, base: Checkpoint) -> Patch:
    """The patch with its fused modules apart, as a base has them that says nothing of fusing: by its own sizes.

    The rows of qkv_proj are those of q, then k, then v, and of gate_up_proj gate before up, as wherever modules have
    those names. The patch carries its own names, as read without a base. Raises NotRepresentable where no module
    changes, and as `relaid`; UnknownSite.
    """
    terms: list[SiteTerm] = []
    for term in patch.terms:
        parent, _, last = term.site.removesuffix(".weight").rpartition(".")
        parts = _CALLED.get(last, ())
        sites = [f"{parent}.{part}.weight" for part in parts]
        names = naming(sites, base) if sites else None
        found = [names.find(one) for one in sites] if names else []
        sizes = [base.tensors[one].shape[0] for one in found if one is not None]
        if not parts or len(sizes) < len(parts):
            terms.append(term)
            continue
        edges = np.cumsum((0, *sizes))
        rows = {part: np.arange(edges[n], edges[n + 1]) for n, part in enumerate(parts)}
        terms += _split(term, {last: rows}, base)
    if [one.site for one in terms] == [one.site for one in patch.terms]:
        raise NotRepresentable(f"the patch is on none of {', '.join(_CALLED)} that base {base.name!r} has apart")
    return replace(patch, digest=json_digest([patch.digest, "split"]), terms=tuple(sorted(terms, key=lambda t: t.site)))


def fused_modules(base: Checkpoint) -> Mapping[str, Rows]:
    """The rows of each part by the fused module's last name. Raises NotRepresentable."""
    model_type = str(base.config.get("model_type"))
    if model_type not in _BY_MODEL_TYPE:
        known = ", ".join(_BY_MODEL_TYPE)
        raise NotRepresentable(f"base {base.name!r} is {model_type!r}, whose projections are not fused; {known} are")
    name, rows = _BY_MODEL_TYPE[model_type]
    found = {name: rows(_heads(base))}
    if model_type in _GATED:
        gated, parts = _GATED[model_type]
        size = _number(base, "intermediate_size")
        found[gated] = {part: np.arange(n * size, (n + 1) * size) for n, part in enumerate(parts)}
    return found


def _heads(base: Checkpoint) -> Heads:
    heads = _number(base, "num_attention_heads", "n_head")
    size = base.config.get("head_dim") or _number(base, "hidden_size", "n_embd") // heads
    groups = base.config.get("num_key_value_heads") or heads
    if base.config.get("model_type") == "falcon":
        # Of its first release all heads have one key, or each its own; of the later one num_kv_heads are.
        is_new, is_shared = base.config.get("new_decoder_architecture"), base.config.get("multi_query", True)
        groups = _number(base, "num_kv_heads") if is_new else 1 if is_shared else heads
    if not isinstance(groups, int) or groups <= 0 or heads % groups:
        raise NotRepresentable(
            f"config.json of base {base.name!r} says {heads} heads for {groups} keys; no whole groups"
        )
    return Heads(heads, groups, int(size))


def _number(base: Checkpoint, *names: str) -> int:
    found = next((base.config[name] for name in names if base.config.get(name) is not None), None)
    if type(found) is not int or found <= 0:
        raise NotRepresentable(f"config.json of base {base.name!r} says {found!r} for {names[0]}; a count is expected")
    return found


def _fused(term: SiteTerm, fused: Mapping[str, Rows], base: Checkpoint) -> Iterator[SiteTerm]:
    """The term on the fused module of which its own is a part, zeros in the rows of others."""
    parent, _, last = term.site.removesuffix(".weight").rpartition(".")
    found = next(((name, rows) for name, rows in fused.items() if last in rows), None)
    if found is None:
        _refuse_bias(term, [part for rows in fused.values() for part in rows])
        yield term
        return
    name, parts = found
    rows, count = parts[last], sum(map(len, parts.values()))
    _check_term(term, len(rows), is_dora_kept=False)
    module = f"{parent}.{name}"
    is_swapped = bool(is_conv1d(module, base))
    layer = {"layer": "conv1d" if is_swapped else "linear", "transpose": is_swapped}

    def placed(handle: TensorHandle) -> TensorHandle:
        shape = (count, *handle.shape[1:])

        def make() -> Array:
            stored = as_array(handle)
            whole = np.zeros(shape, stored.dtype)
            whole[rows] = stored
            return whole

        return computed(handle.name, handle.dtype, shape, make)

    yield _with(term, module, layer, {"B": placed, "b": placed})


def _split(term: SiteTerm, fused: Mapping[str, Rows], base: Checkpoint) -> Iterator[SiteTerm]:
    """One term a part of the module, each with its rows of B and of the magnitudes."""
    parent, _, last = term.site.removesuffix(".weight").rpartition(".")
    if last not in fused:
        _refuse_bias(term, list(fused))
        yield term
        return
    _check_term(term, sum(map(len, fused[last].values())), is_dora_kept=True)
    for part, rows in fused[last].items():

        def taken(handle: TensorHandle, rows: Array = rows) -> TensorHandle:
            shape = (len(rows), *handle.shape[1:])
            return computed(handle.name, handle.dtype, shape, lambda: as_array(handle)[rows])

        layer = {"layer": "linear", "transpose": False}
        yield _with(term, f"{parent}.{part}", layer, {"B": taken, "b": taken, "mag": taken})


def _with(
    term: SiteTerm, module: str, layer: Mapping[str, Any], change: Mapping[str, Callable[[TensorHandle], TensorHandle]]
) -> SiteTerm:
    fields = {name: change[name](one) if name in change else one for name, one in term.fields.items()}
    return replace(term, site=f"{module}.weight", fields=fields, options={**term.options, "module": module, **layer})


def _check_term(term: SiteTerm, rows: int, *, is_dora_kept: bool) -> None:
    if term.term != "lowrank" and not (term.term == "dora" and is_dora_kept):
        hint = "its magnitudes are of one rank" if term.term == "dora" else "convert it to lora first"
        raise NotRepresentable(f"{term.site}: a {term.term} term, and only low-rank ones change their layout; {hint}")
    if term.fields["B"].shape[0] != rows:
        raise ShapeMismatch(term.site, term.fields["B"].shape, "config.json", (rows, term.fields["B"].shape[1]))


def _refuse_bias(term: SiteTerm, modules: list[str]) -> None:
    module, _, field = term.site.rpartition(".")
    if field != "weight" and module.rpartition(".")[2] in modules:
        raise NotRepresentable(f"{term.site}: is changed besides the weight, and only weights change their layout")


def _check_stored(terms: list[SiteTerm], base: Checkpoint) -> None:
    """Raises UnknownSite or ShapeMismatch where the base does not store what is fused."""
    names = naming([term.site for term in terms], base)
    for term in terms:
        stored = base.tensors[names.site(term.site)].shape
        delta = (term.fields["B"].shape[0], term.fields["A"].shape[1]) if "B" in term.fields else stored
        if term.options.get("transpose"):
            delta = delta[::-1]
        if stored != delta and term.options.get("layer") in ("linear", "conv1d"):
            raise ShapeMismatch(term.site, delta, base.name, stored)
