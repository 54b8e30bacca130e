"""What some LoRA files say beside their factors: what training took out of the base, and which expert is whose.

PiSSA, OLoRA and KaSA train on a base that their initialisation changed; those that follow from the base alone are
worked out again, when their values are read. Adapters of stacked expert parameters hold all experts' factors in two
matrices. Never imports torch.

Source: peft 0.21 `tuners/lora/layer.py`, pissa_init, olora_init, ParamWrapper; `variants.py`, KasaLinearVariant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import InvalidPatch, NotFoldable, ShapeMismatch, UnknownSite
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, computed

Array = np.ndarray[Any, np.dtype[Any]]

_BITS = {"F16": "<u2", "BF16": "<u2", "F32": "<u4", "F64": "<u8"}
_MOST_EXPERTS = 65536


def floats(handle: TensorHandle) -> Array:
    """The values in float32. Raises NotFoldable for a tensor that holds none of 16 to 64 bits."""
    if handle.dtype not in _BITS:
        raise NotFoldable(f"{handle.name}: is stored as {handle.dtype}; dequantise the base first")
    raw = np.frombuffer(handle.read(), _BITS[handle.dtype]).reshape(handle.shape)
    if handle.dtype == "BF16":
        return (raw.astype("<u4") << 16).view("<f4")
    return raw.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[handle.dtype]).astype("<f4")


# ---- what the initialisation took out of the base ------------------------------------------------------------------


_TAKEN: Mapping[str, str] = {"pissa": "principal", "olora": "orthonormal", "kasa": "minor"}
"""By initialisation: the function of `ops/decompositions.py` whose factors, times the scaling, it takes out of W."""


def changes_base(config: Mapping[str, Any]) -> str | None:
    """What of `_TAKEN` the training's base lacks, None where the base was left as it is."""
    if config.get("kasa_config") not in (None, False, {}):
        return "kasa"
    init = config.get("init_lora_weights")
    name = init.lower() if isinstance(init, str) else ""
    return name if name in _TAKEN else None


def taken_term(
    kind: str, module: str, r: int, scaling: float, site: str, options: Mapping[str, Any], sites: Sites
) -> SiteTerm:
    """The lowrank term that takes out of the base what training took out; computed from the base when it is read.

    Raises NotFoldable for an embedding or a convolution, InvalidPatch for a rank above the weight's.
    """
    stored = sites.stored(site, options)
    if options["layer"] not in ("linear", "conv1d"):
        raise NotFoldable(f"{site}: {kind} changes linear maps alone, this is of kind {options['layer']}")
    out, fan_in = stored.shape[::-1] if options["transpose"] else stored.shape
    if r > min(out, fan_in):
        raise InvalidPatch(f"{module}: rank {r} is more than its weight {stored.shape} has")

    @cache
    def pair() -> tuple[Array, Array]:
        # The engine's arithmetic: a handle is read where tensors are computed, and named where torch is not loaded.
        ops = import_module("adapterhub.merging.ops.decompositions")
        tensors = import_module("adapterhub.merging.ops.tensors")
        W = tensors.from_bytes(stored.read(), stored.dtype, stored.shape).float()
        A, B = getattr(ops, _TAKEN[kind])(W.T if options["transpose"] else W, r, scaling)
        return A.numpy(), B.numpy()

    fields = {
        "A": computed(f"{module}.taken_A", "F32", (r, fan_in), lambda: pair()[0]),
        "B": computed(f"{module}.taken_B", "F32", (out, r), lambda: pair()[1]),
    }
    return SiteTerm(site, "lowrank", fields, -scaling, options)


# ---- parameters that no module's weight is -----------------------------------------------------------------------


def held_parameters(adapter: Adapter, module: str) -> list[str]:
    """Names of the parameters of target_parameters that a module's factors may belong to; none for a plain module."""
    said = adapter.config.get("target_parameters") or []
    owner = owner_of(module)
    names = {one.rpartition(".")[2] for one in said if _ends_with(f"{owner}.{one.rpartition('.')[2]}", one)}
    return sorted(f"{owner}.{name}" for name in names - {"weight"})


def owner_of(module: str) -> str:
    """The module that holds the parameters: peft wraps one adapter around another, the inner ones as base_layer."""
    return re.sub(r"(\.base_layer)+$", "", module)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith("." + end)


_FUSED: Mapping[str, Sequence[Sequence[str]]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}
"""transformers' parameters of all experts, and the per-expert weights of checkpoints that they stack, several of them
one below the other.

Source: transformers 5.23 `conversion_mapping.py`, mixtral and qwen2_moe.
"""

_TRANSPOSED = {"gpt_oss", "openai_privacy_filter", "aria", "aria_text", "llama4", "llama4_text"}
"""Model types that store expert parameters (experts, in, out). Source: transformers' modeling files, is_transposed."""


def stacked_terms(
    adapter: Adapter, module: Module, sites: Sites, r: Callable[[str], int], scaling: Callable[[str, int], float]
) -> Iterator[SiteTerm]:
    """The terms of one adapter of a stacked parameter; none without a base, whose shapes alone say which one it is.

    A (experts·r, in) has expert after expert, B (out, r·experts) has the expert as its fastest index. One dense term
    where the base stores the parameter stacked, one lowrank term for each expert's own weights otherwise.
    r, scaling: of a parameter by name. Raises UnknownSite, ShapeMismatch, NotFoldable.
    """
    if sites.base is None:
        return
    A, B = module.fields["A"], module.fields["B"]
    parameter = _parameter_of(adapter, module, sites)
    rank = r(parameter)
    count = A.shape[0] // rank
    if A.shape[0] != count * rank or B.shape[1] != A.shape[0] or not 0 < count <= _MOST_EXPERTS:
        raise InvalidPatch(f"{module.path}: lora_A is {A.shape} and lora_B {B.shape}; rank {rank} fits neither")
    site = sites.find(parameter)
    if site is not None:
        shape = sites.base.tensors[site].shape
        is_transposed = _is_transposed(shape, A.shape[1], B.shape[0], sites)
        delta = computed(f"{parameter}.delta", "F32", shape, lambda: _stack(A, B, count, is_transposed))
        yield SiteTerm(site, "dense", {"delta": delta}, scaling(parameter, rank), {"transpose": False})
        return
    for number in range(count):
        parts = _expert_sites(parameter, number, sites)
        rows = B.shape[0] // len(parts)
        for position, one in enumerate(parts):
            if sites.base.tensors[one].shape != (rows, A.shape[1]):
                raise ShapeMismatch(one, (rows, A.shape[1]), sites.base.name, sites.base.tensors[one].shape)
            fields = {
                "A": _taken(A, slice(number * rank, (number + 1) * rank), slice(None)),
                "B": _taken(B, slice(position * rows, (position + 1) * rows), slice(number, None, count)),
            }
            options = {"transpose": False, "layer": "linear", "module": one.removesuffix(".weight")}
            yield SiteTerm(one, "lowrank", fields, scaling(parameter, rank), options)


def _taken(handle: TensorHandle, rows: slice, columns: slice) -> TensorHandle:
    """Some rows and columns of a stored matrix, bit for bit."""
    bits = _BITS[handle.dtype]
    shape = (len(range(*rows.indices(handle.shape[0]))), len(range(*columns.indices(handle.shape[1]))))
    name = f"{handle.name}[{rows.start}:{rows.stop}]"

    def make() -> Array:
        taken: Array = np.frombuffer(handle.read(), bits).reshape(handle.shape)[rows, columns]
        return taken

    return computed(name, handle.dtype, shape, make)


def _stack(A: TensorHandle, B: TensorHandle, count: int, is_transposed: bool) -> Array:
    a = floats(A).reshape(count, -1, A.shape[1])  # (experts, r, in)
    b = floats(B).reshape(B.shape[0], -1, count).transpose(2, 0, 1)  # (experts, out, r)
    stacked: Array = np.matmul(b, a)  # (experts, out, in)
    return stacked.transpose(0, 2, 1) if is_transposed else stacked


def _is_transposed(shape: tuple[int, ...], fan_in: int, out: int, sites: Sites) -> bool:
    if fan_in == out:
        assert sites.base is not None
        return str(sites.base.config.get("model_type")) in _TRANSPOSED
    return shape[1:] == (fan_in, out)


def _parameter_of(adapter: Adapter, module: Module, sites: Sites) -> str:
    """Which of a module's parameters these factors adapt: that of their shape.

    peft nests the adapters of one module in the order of the module's own parameters, whatever the configuration's
    order is, and no file says that order; gate_up_proj (2·f, d) and down_proj (d, f) never have one shape.
    """
    fan_in, out = module.fields["A"].shape[1], module.fields["B"].shape[0]
    shapes = {one: _stacked_shape(one, sites) for one in held_parameters(adapter, module.path)}
    fitting = [one for one, shape in shapes.items() if sorted(shape) == sorted((fan_in, out))]
    if not fitting:
        raise InvalidPatch(f"{module.path}: adapts a ({out}, {fan_in}) matrix; the base has {shapes}")
    if len(fitting) > 1:
        raise NotFoldable(f"{module.path}: {' and '.join(fitting)} have one shape, and the file does not say which")
    return fitting[0]


def _stacked_shape(parameter: str, sites: Sites) -> tuple[int, ...]:
    """The two sides of one expert's matrix, in whatever order. Raises UnknownSite."""
    assert sites.base is not None
    site = sites.find(parameter)
    if site is not None:
        shape = sites.base.tensors[site].shape
        if len(shape) != 3:
            raise NotFoldable(f"{site}: is {shape}; a parameter of three dimensions, or a module's weight, is adapted")
        return shape[1:]
    shapes = [sites.base.tensors[one].shape for one in _expert_sites(parameter, 0, sites)]
    return (sum(shape[0] for shape in shapes), prod(shapes[0][1:]))


def _expert_sites(parameter: str, number: int, sites: Sites) -> list[str]:
    """The base's names of one expert's weights that a stacked parameter has one below the other. Raises UnknownSite."""
    assert sites.base is not None
    owner, _, name = parameter.rpartition(".")
    for stem in (owner, owner.replace(".mlp.", ".block_sparse_moe.")):
        for parts in _FUSED.get(name, ()):
            found = [sites.find(f"{stem}.{number}.{part}.weight") for part in parts]
            names = [one for one in found if one is not None]
            if len(names) == len(parts):
                return names
    raise UnknownSite(parameter, sites.base.name)


def expert_of(module: str, sites: Sites) -> tuple[str, int, int, int] | None:
    """Where one expert's own module is inside a parameter that the base stores stacked; None for any other module.

    Gives the site, the expert's number, and which of how many blocks of rows it is. Adapters that were trained with
    transformers 4 name each expert's modules. Raises nothing.
    """
    found = re.fullmatch(r"(.+\.experts)\.(\d{1,5})\.(\w+)", module)
    if found is None or sites.base is None or sites.find(f"{module}.weight") is not None:
        return None
    for parameter, spellings in _FUSED.items():
        for parts in spellings:
            for stem in (found[1], found[1].replace(".block_sparse_moe.", ".mlp.")):
                site = sites.find(f"{stem}.{parameter}") if found[3] in parts else None
                if site is not None:
                    return site, int(found[2]), parts.index(found[3]), len(parts)
    return None


def gathered_terms(
    adapter: Adapter,
    sites: Sites,
    scaling: Callable[[str, int], float],
    factors: Callable[[Adapter, Module], tuple[TensorHandle, TensorHandle]],
) -> Iterator[SiteTerm]:
    """One dense term for each stacked parameter of the base of which the adapter has single experts' modules.

    Raises ShapeMismatch for a module that does not fit its place.
    """
    places: dict[str, list[tuple[int, slice, TensorHandle, TensorHandle, float]]] = {}
    for path, module in adapter.modules.items():
        place = expert_of(path, sites)
        if place is None or sites.base is None:
            continue
        site, number, position, count = place
        A, B = factors(adapter, module)
        shape, rows = sites.base.tensors[site].shape, B.shape[0]
        if len(shape) != 3 or number >= shape[0] or (rows * count, A.shape[1]) != shape[1:]:
            raise ShapeMismatch(site, (number + 1, rows * count, A.shape[1]), sites.base.name, shape)
        block = slice(position * rows, (position + 1) * rows)
        places.setdefault(site, []).append((number, block, A, B, scaling(path, A.shape[0])))
    for site, parts in places.items():
        shape = sites.stored(site, {}).shape
        delta = computed(f"{site}.delta", "F32", shape, lambda parts=parts, shape=shape: _gather(parts, shape))  # type: ignore[misc]
        yield SiteTerm(site, "dense", {"delta": delta}, options={"transpose": False})


def _gather(parts: Sequence[tuple[int, slice, TensorHandle, TensorHandle, float]], shape: tuple[int, ...]) -> Array:
    delta = np.zeros(shape, "<f4")
    for number, block, A, B, scale in parts:
        delta[number, block] = scale * (floats(B) @ floats(A))
    return delta
