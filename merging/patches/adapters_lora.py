"""adapters_lora: LoRA and (IA)³ as the library of AdapterHub saves them.

Files: as `adapters`, with architecture "lora". Keys: `<module>.loras.<name>.lora_A` (r, in) and `lora_B` (out, r), the
delta being alpha / r · B·A; under composition_mode "scale" `lora_B` (out, 1) alone, whose products with alpha multiply
the module's outputs. On GPT-2's fused c_attn factors are those of the enabled ones among q, k and v, one under another.

Source: adapters 1.3.0 `methods/lora.py`. Differs: its own merge of (IA)³ leaves biases as they are, which its forward
pass multiplies too; here they are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adapterhub.merging.adapters_folder import (
    CONFIG,
    HEAD_WEIGHTS,
    WEIGHTS,
    AdaptersFolder,
    architecture_of,
    digest_of,
    open_adapters,
    read_adapters_config,
    training_base_of,
)
from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch
from adapterhub.merging.folders import join
from adapterhub.merging.patch import Facts, Patch, PatchKind, SiteTerm
from adapterhub.merging.peft_adapter import floats
from adapterhub.merging.sites import Naming, is_conv1d, layers_of, naming, targets_of

NAME = "adapters_lora"
_FUSED = "c_attn"
_MATRICES = ("q", "k", "v")


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of the adapter in `path`, from its configurations and headers."""
    whole = read_adapters_config(folder, path)
    if whole is None or architecture_of(whole) != "lora":
        return None
    file, config = join(path, CONFIG), whole["config"]
    facts: dict[str, Any] = {
        "kind": NAME,
        "reason": f"{file} has no peft_type, and config of the library adapters, architecture 'lora'",
        "path": path,
        "files": (file,),
        "effect": "affine" if config.get("composition_mode") == "scale" else "additive",
        "base": training_base_of(whole),
        "detail": {key: config.get(key) for key in ("r", "alpha", "composition_mode", "attn_matrices")},
    }
    try:
        found = open_adapters(folder, path)
        modules = _modules(found)
    except InvalidPatch as error:
        return Facts(**facts, problems=(str(error),))
    dtypes: Counter[str] = Counter()
    for handle in found.handles:
        dtypes[handle.dtype] += handle.numel
    weights = [join(path, WEIGHTS), *([join(path, HEAD_WEIGHTS)] if found.head else [])]
    r = config.get("r") if facts["effect"] == "additive" else None
    facts |= {
        "files": (file, *weights),
        "rank_min": r,
        "rank_max": r,
        "targets": targets_of(modules),
        "layers": layers_of(modules),
        "parameter_count": sum(dtypes.values()),
        "dtypes": dict(dtypes),
        "size_bytes": sum(folder.size(one) for one in weights),
    }
    return Facts(**facts)


def _modules(found: AdaptersFolder) -> dict[str, dict[str, TensorHandle]]:
    """Fields by module. Raises InvalidPatch for what is no plain LoRA or (IA)³, and for factors that do not fit."""
    file, config = join(found.path, WEIGHTS), found.config
    for key in ("use_gating", "use_dora"):
        if config.get(key):
            raise InvalidPatch(f"{join(found.path, CONFIG)}: {key} is set; only LoRA and (IA)³ without it are read")
    alpha, r = config.get("alpha"), config.get("r")
    if not isinstance(alpha, int | float) or type(r) is not int or r < 1:
        raise InvalidPatch(f"{join(found.path, CONFIG)}: alpha is {alpha!r} and r {r!r}; numbers are expected")
    modules: dict[str, dict[str, TensorHandle]] = {}
    for key, handle in found.others.items():
        module, mark, field = key.partition(f".loras.{found.whole.get('name')}.")
        if not mark or field not in ("lora_A", "lora_B"):
            raise InvalidPatch(f"{file}: tensor {key[:200]} belongs to no LoRA of {found.whole.get('name')!r}")
        modules.setdefault(module, {})[field] = handle
    if not modules or found.modules:
        raise InvalidPatch(f"{file}: holds {'bottlenecks too' if modules else 'no LoRA'}; save each method by itself")
    for module, fields in modules.items():
        _check(f"{file}: {module[:200]}", fields, r, _is_scale(found))
    return modules


def _is_scale(found: AdaptersFolder) -> bool:
    return found.config.get("composition_mode") == "scale"


def _check(where: str, fields: Mapping[str, TensorHandle], r: int, is_scale: bool) -> None:
    shapes = {name: one.shape for name, one in fields.items()}
    if is_scale:
        if set(fields) != {"lora_B"} or len(shapes["lora_B"]) != 2 or shapes["lora_B"][1] != 1:
            raise InvalidPatch(f"{where}: has {shapes}; lora_B (out, 1) alone is expected of composition_mode 'scale'")
        return
    if set(fields) != {"lora_A", "lora_B"} or any(len(one) != 2 for one in shapes.values()):
        raise InvalidPatch(f"{where}: has {shapes}; lora_A (r, in) and lora_B (out, r) are expected")
    if shapes["lora_B"][1] != r or shapes["lora_A"][0] % r:
        raise InvalidPatch(f"{where}: has {shapes}, and {CONFIG} says r {r}")


# ---- terms -----------------------------------------------------------------------------------------------------------


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter as terms. Raises InvalidPatch, UnknownSite, ShapeMismatch."""
    facts = recognise(folder, path)
    if facts is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else f"{join(path, CONFIG)}: no LoRA of the library adapters")
    found = open_adapters(folder, path)
    modules = _modules(found)
    names = naming([f"{module}.weight" for module in modules], base) if base is not None else None
    terms = [term for module, fields in modules.items() for term in _terms(found, module, fields, names)]
    terms += [_whole(name, handle, names) for name, handle in found.head.items()]
    return Patch(facts, digest_of(folder, found, NAME), tuple(sorted(terms, key=lambda term: term.site)))


def _terms(
    found: AdaptersFolder, module: str, fields: Mapping[str, TensorHandle], names: Naming | None
) -> Iterator[SiteTerm]:
    site = names.site(f"{module}.weight") if names else f"{module}.weight"
    transpose = bool(names and is_conv1d(module, names.base))
    blocks = _enabled(found, module, fields)
    alpha, r = float(found.config["alpha"]), int(found.config["r"])
    out = fields["lora_B"].shape[0] // len(blocks) * 3 if blocks else fields["lora_B"].shape[0]
    if names:
        _check_shape(names, site, out, fields, transpose)
    if _is_scale(found):
        row = floats(f"{module}.lora_B", (out,), lambda: alpha * _spread(fields["lora_B"], blocks, 1.0))
        yield SiteTerm(site, "scale", {"row": row}, options={"transpose": transpose})
        bias = f"{site.removesuffix('weight')}bias"
        if names is None or bias in names.base.tensors:
            yield SiteTerm(bias, "scale", {"row": row})
        return
    A = fields["lora_A"]
    B = floats(f"{module}.lora_B", (out, A.shape[0]), lambda: _placed(fields["lora_B"], blocks, r))
    options = {"transpose": transpose, "layer": "conv1d" if transpose else "linear", "module": module}
    yield SiteTerm(site, "lowrank", {"A": A, "B": B if blocks else fields["lora_B"]}, alpha / r, options)


def _enabled(found: AdaptersFolder, module: str, fields: Mapping[str, TensorHandle]) -> Sequence[int]:
    """Of a fused module the places among q, k and v that the factors are for; () of any other."""
    if module.rpartition(".")[2] != _FUSED:
        return ()
    said = found.config.get("attn_matrices") or []
    blocks = [place for place, name in enumerate(_MATRICES) if name in said]
    if not blocks or any(one.shape[0] % len(blocks) for one in fields.values()):
        raise InvalidPatch(f"{module}: {CONFIG} says attn_matrices {said}, which its factors are not for")
    return blocks


def _spread(stored: TensorHandle, blocks: Sequence[int], rest: float) -> Array:
    """One number an output; `rest` for the blocks that are not there."""
    values = as_floats(stored).reshape(-1).astype(np.float64)
    if not blocks:
        return values
    size = len(values) // len(blocks)
    whole = np.full((3, size), rest)
    whole[list(blocks)] = values.reshape(len(blocks), size)
    return whole.reshape(-1)


def _placed(stored: TensorHandle, blocks: Sequence[int], r: int) -> Array:
    """B with each block's rows where q, k and v have theirs, and its columns beside those of the others."""
    values = as_floats(stored).astype(np.float64)
    size = values.shape[0] // len(blocks)
    whole = np.zeros((3 * size, r * len(blocks)))
    for number, place in enumerate(blocks):
        rows = values[number * size : (number + 1) * size]
        whole[place * size : (place + 1) * size, number * r : (number + 1) * r] = rows
    return whole


def _check_shape(names: Naming, site: str, out: int, fields: Mapping[str, TensorHandle], transpose: bool) -> None:
    shape = names.base.tensors[site].shape
    here = shape[::-1] if transpose else shape
    expected = (out, fields["lora_A"].shape[1] if "lora_A" in fields else here[-1])
    if tuple(here) != expected:
        raise ShapeMismatch(site, expected, names.base.name, here)


def _whole(name: str, handle: TensorHandle, names: Naming | None) -> SiteTerm:
    known = names.find(name) if names else name
    return SiteTerm(known or name, "replace", {"value": handle}, options={} if known else {"create": True})


SPEC = PatchKind(
    name=NAME,
    title="AdapterHub LoRA",
    summary="Low-rank factors, or factors on outputs, as AdapterHub's library saves them",
    source="arXiv:2106.09685, arXiv:2205.05638, as the library adapters saves them",
    recognise=recognise,
    read=read,
    family="adapters",
)
