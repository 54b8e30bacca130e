"""mlx: LoRA and DoRA adapters as mlx-lm saves them, and its full fine-tunes.

Files: `adapter_config.json` without peft_type, with `lora_parameters` or `fine_tune_type`, and `adapters.safetensors`.
A module has lora_a (in, r) and lora_b (r, out): its delta is scale · (lora_a @ lora_b)ᵀ; scale is a factor by itself,
not divided by r, and an `alpha` beside it is not read by mlx-lm. DoRA adds m (out,). An embedding's lora_a is (tokens,
r) and nothing is transposed. With fine_tune_type "full" the file holds whole parameters.

Source: mlx-lm 0.32 `tuner/{lora,dora,utils}.py`, LoRALinear.fuse, DoRALinear.fuse, load_adapters.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.encodings import as_array
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch
from adapterhub.merging.folders import join, json_digest, read_json
from adapterhub.merging.patch import Facts, Patch, PatchKind, SiteTerm, TrainingBase
from adapterhub.merging.patterns import positive
from adapterhub.merging.peft_adapter import DTYPES, computed
from adapterhub.merging.sites import is_embedding, layers_of, naming, targets_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"

_FIELDS = ("lora_a", "lora_b", "m")
_SHOWN = ("fine_tune_type", "num_layers", "lora_layers", "iters", "learning_rate", "optimizer")
_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*/[A-Za-z0-9][A-Za-z0-9._\-]*")


@dataclass(frozen=True)
class _Adapter:
    """Tensors by module and field, and whole parameters by name. scale: on every delta."""

    scale: float
    modules: Mapping[str, Mapping[str, TensorHandle]]
    whole: Mapping[str, TensorHandle]


def _open(folder: Folder, path: str, config: Mapping[str, Any]) -> _Adapter:
    weights = join(path, WEIGHTS)
    if weights not in folder.names():
        raise InvalidPatch(f"{weights}: missing; {join(path, CONFIG)} alone is no adapter")
    parameters = config.get("lora_parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidPatch(f"{join(path, CONFIG)}: lora_parameters is {str(parameters)[:80]}; an object is expected")
    is_full = config.get("fine_tune_type") == "full"
    if not is_full and "scale" not in parameters:
        raise InvalidPatch(f"{join(path, CONFIG)}: lora_parameters has no scale, without which mlx-lm loads nothing")
    scale = 1.0 if is_full else positive(parameters["scale"], f"{join(path, CONFIG)}: lora_parameters.scale")
    tensors, _ = open_tensors(folder, weights, limit_bytes=PATCH_HEADER_BYTES)
    modules: dict[str, dict[str, TensorHandle]] = {}
    whole: dict[str, TensorHandle] = {}
    for name, handle in tensors.items():
        module, _, field = name.rpartition(".")
        if field in _FIELDS and not is_full:
            modules.setdefault(module, {})[field] = handle
        else:
            whole[name] = handle
    return _Adapter(scale, dict(sorted(modules.items())), dict(sorted(whole.items())))


def _contradictions(adapter: _Adapter, config: Mapping[str, Any]) -> Iterator[str]:
    if not adapter.modules and not adapter.whole:
        yield f"{WEIGHTS}: holds no tensor"
    is_full = config.get("fine_tune_type") == "full"
    for name in () if is_full else adapter.whole:
        yield f"{WEIGHTS}: tensor {name[:200]} is no part of an adapter ({', '.join(_FIELDS)})"
    for module, fields in adapter.modules.items():
        yield from (f"{WEIGHTS}: {module}: {sentence}" for sentence in _module_contradictions(fields))


def _module_contradictions(fields: Mapping[str, TensorHandle]) -> Iterator[str]:
    a, b = fields.get("lora_a"), fields.get("lora_b")
    if a is None or b is None:
        yield f"has {', '.join(sorted(fields))} and not both lora_a and lora_b"
    elif len(a.shape) == 3 or len(b.shape) == 3:
        yield "its factors are stacked for several experts, which are stored and shown, and not merged"
    elif len(a.shape) != 2 or len(b.shape) != 2 or 0 in a.shape + b.shape or a.shape[1] != b.shape[0]:
        yield f"lora_a is {a.shape} and lora_b {b.shape}; (in, r) and (r, out) are expected"
    elif not {handle.dtype for handle in fields.values()} <= DTYPES:
        yield f"has dtypes {sorted({handle.dtype for handle in fields.values()})}; floats are expected"


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of an mlx-lm adapter: an adapter_config.json without peft_type that has mlx-lm's own keys."""
    file = join(path, CONFIG)
    if file not in folder.names():
        return None
    try:
        config = read_json(folder, file)
    except InvalidPatch:
        return None
    own = next((key for key in ("lora_parameters", "fine_tune_type", "lora_layers") if key in config), None)
    if "peft_type" in config or own is None:
        return None
    said = config.get("model")
    facts = Facts(
        kind="mlx",
        reason=f"{file} has no peft_type and the key {own!r} of mlx-lm",
        path=path,
        files=(file,),
        base=TrainingBase(name=said if isinstance(said, str) and _REPO_ID.fullmatch(said) else None),
        detail={key: config[key] for key in _SHOWN if isinstance(config.get(key), str | int | float)},
    )
    try:
        adapter = _open(folder, path, config)
    except InvalidPatch as error:
        return replace(facts, problems=(str(error),))
    return _with_tensors(facts, folder, adapter, tuple(_contradictions(adapter, config)))


def _with_tensors(facts: Facts, folder: Folder, adapter: _Adapter, problems: Sequence[str]) -> Facts:
    handles = [handle for fields in adapter.modules.values() for handle in fields.values()]
    handles += adapter.whole.values()
    dtypes: Counter[str] = Counter()
    for handle in handles:
        dtypes[handle.dtype] += handle.numel
    found = (fields.get("lora_b") for fields in adapter.modules.values())
    ranks = [b.shape[-2] for b in found if b is not None and len(b.shape) > 1]
    weights = join(facts.path, WEIGHTS)
    return replace(
        facts,
        files=(*facts.files, weights),
        effect="replace" if adapter.whole else "additive",
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        targets=targets_of([*adapter.modules, *adapter.whole]),
        layers=layers_of([*adapter.modules, *adapter.whole]),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(weights),
        detail=dict(facts.detail) | {"scale": adapter.scale},
        problems=tuple(problems),
    )


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter as lowrank or dora terms, or replace terms of a full fine-tune.

    Raises InvalidPatch, UnknownSite or ShapeMismatch.
    """
    facts = recognise(folder, path)
    if facts is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else f"{join(path, CONFIG)}: missing, or not of mlx-lm")
    config = read_json(folder, join(path, CONFIG))
    adapter = _open(folder, path, config)
    names = naming([f"{module}.weight" for module in adapter.modules] + list(adapter.whole), base) if base else None
    terms = []
    for name, value in adapter.whole.items():
        site = names.site(name) if names else name
        _check_shape(site, value.shape, base)
        terms.append(SiteTerm(site, "replace", {"value": value}))
    for module, fields in adapter.modules.items():
        site = names.site(f"{module}.weight") if names else f"{module}.weight"
        terms.append(_term(site, module, fields, adapter.scale, base))
    counted = {"kind": "mlx", "scale": adapter.scale, "weights": folder.digest(join(path, WEIGHTS))}
    return Patch(facts, json_digest(counted), tuple(sorted(terms, key=lambda term: term.site)))


def _term(
    site: str, module: str, fields: Mapping[str, TensorHandle], scale: float, base: Checkpoint | None
) -> SiteTerm:
    a, b = fields["lora_a"], fields["lora_b"]
    is_input = is_embedding(site) and not site.endswith("head.weight")
    is_table = is_input and base is not None and base.tensors[site].shape == (a.shape[0], b.shape[1])
    _check_shape(site, (a.shape[0], b.shape[1]) if is_table else (b.shape[1], a.shape[0]), base)
    # With A = lora_b and B = lora_a an embedding's delta is B @ A; all others have both factors turned.
    factors = {"A": b, "B": a} if is_table else {"A": _transposed(a), "B": _transposed(b)}
    options = {"module": module, "layer": "embedding" if is_table else "linear", "transpose": False}
    if "m" not in fields:
        return SiteTerm(site, "lowrank", factors, scale, options)
    return SiteTerm(site, "dora", factors | {"mag": fields["m"]}, options=options | {"scaling": scale})


def _transposed(handle: TensorHandle) -> TensorHandle:
    return computed(handle.name, handle.dtype, handle.shape[::-1], lambda: as_array(handle).T)


def _check_shape(site: str, found: tuple[int, ...], base: Checkpoint | None) -> None:
    if base is not None and base.tensors[site].shape != found:
        raise ShapeMismatch(site, found, base.name, base.tensors[site].shape)


SPEC = PatchKind(
    name="mlx",
    title="MLX adapter",
    summary="LoRA, DoRA or whole parameters, as mlx-lm saves them",
    source="mlx-lm save_adapters",
    recognise=recognise,
    read=read,
    family="mlx",
    has_factors=True,
)
