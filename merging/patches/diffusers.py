"""diffusers: LoRA and DoRA of diffusion models as diffusers saves them, today and before it used peft.

One safetensors file, mostly pytorch_lora_weights.safetensors; tensors are `<component>.<module>.lora_A.weight` and
`.lora_B.weight`, or of older ones `.lora.down.weight`, `.lora_linear_layer.up.weight` and, of attention,
`.processor.to_q_lora.down.weight`.
The metadata's `lora_adapter_metadata` holds peft's configuration of each component, which alone tells alpha; without
it a delta is B @ A as it is.

Source: diffusers 0.42 `loaders/lora_base.py`, `utils/peft_utils.py` (get_peft_kwargs), `utils/state_dict_utils.py`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle
from adapterhub.merging.diffusion import (
    COMPONENTS,
    Module,
    component_of,
    contradictions,
    file_path,
    safetensors_of,
    with_modules,
)
from adapterhub.merging.diffusion import read as read_modules
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import strict_json
from adapterhub.merging.lowrank_export import copied, is_dora, one_layer, pairs_of, patterns
from adapterhub.merging.patch import Export, Facts, Patch, PatchKind
from adapterhub.merging.patterns import matching, positive, read_pattern

_METADATA = "lora_adapter_metadata"
_WEIGHTS = "pytorch_lora_weights.safetensors"
_NAME = re.compile(
    rf"(?P<component>{'|'.join(COMPONENTS)})\.(?P<path>.+?)"
    r"(?:\.lora_(?P<peft>[AB])\.weight|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<old>down|up)\.weight"
    r"|\.lora_magnitude_vector(?:\.weight)?(?P<mag>))"
)
_OLD = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)$")
_FIELDS = {"A": "A", "B": "B", "down": "A", "up": "B"}


def _configs(file: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """peft's configuration by component, {} without one. Raises InvalidPatch."""
    if _METADATA not in metadata:
        return {}
    try:
        flat = strict_json(metadata[_METADATA].encode())
    except ValueError as error:
        raise InvalidPatch(f"{file}: {_METADATA} is no JSON: {error}") from error
    if not isinstance(flat, dict):
        raise InvalidPatch(f"{file}: {_METADATA} holds no object")
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        found.setdefault(component, {})[name] = value
    return found


def _scale(file: str, config: Mapping[str, Any] | None, path: str, rank: int) -> float:
    """alpha / r or alpha / sqrt(r) by the component's configuration; 1 without one. Raises InvalidPatch."""
    if not config:
        return 1.0
    pattern = read_pattern(config.get("alpha_pattern") or {}, f"{file}: {_METADATA}: alpha_pattern")
    alpha = matching(pattern, path, positive(config.get("lora_alpha", 8), f"{file}: {_METADATA}: lora_alpha"))
    return alpha / math.sqrt(rank) if config.get("use_rslora") is True else alpha / rank


def _modules(
    file: str, tensors: Mapping[str, TensorHandle], metadata: Mapping[str, str]
) -> tuple[list[Module], tuple[str, ...]]:
    """The modules of one file, and what is wrong with it."""
    problems: list[str] = []
    fields: dict[tuple[str, str], dict[str, TensorHandle]] = {}
    for name, handle in sorted(tensors.items()):
        matched = _NAME.fullmatch(name)
        if matched is None:
            problems.append(f"{file}: tensor {name[:200]} is no part of a LoRA of {', '.join(COMPONENTS)}")
            continue
        # Before it used peft diffusers hung the factors on the attention's processor.
        path = _OLD.sub(lambda old: f".{old[1]}.0" if old[1] == "to_out" else f".{old[1]}", matched["path"])
        field = _FIELDS.get(matched["peft"] or matched["old"] or "", "mag")
        fields.setdefault((matched["component"], path), {})[field] = handle
    modules = []
    try:
        configs = _configs(file, metadata)
        for (component, path), found in fields.items():
            rank = found["A"].shape[0] if "A" in found and found["A"].shape else 0
            scale = _scale(file, configs.get(component), path, rank) if rank else 1.0
            modules.append(Module(component, path, found, scale))
            problems += contradictions(file, modules[-1])
    except InvalidPatch as error:
        problems.append(str(error))
    return modules, tuple(problems)


def _open(folder: Folder, path: str) -> tuple[str, list[Module], tuple[str, ...]] | None:
    for file, tensors, metadata in safetensors_of(folder, path):
        if any(_NAME.fullmatch(name) for name in tensors):
            return file, *_modules(file, tensors, metadata)
    return None


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of a diffusers LoRA: tensors named <component>.<module>.lora... The first file by name of a folder."""
    found = _open(folder, path)
    if found is None:
        return None
    file, modules, problems = found
    components = ", ".join(sorted({one.component for one in modules})) or "none"
    facts = Facts("diffusers", f"{file} has LoRA tensors below components of diffusers ({components})", path, (file,))
    return with_modules(facts, folder, file, modules, problems)


def _finder(base: Checkpoint) -> Callable[[str], str | None]:
    return lambda path: path if f"{path}.weight" in base.tensors else None


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter of the base's component as lowrank and dora terms. Raises what `diffusion.read` raises."""
    found = _open(folder, path)
    return read_modules(recognise(folder, path), folder, found[1] if found else [], base, _finder)


def export(addends: Sequence[tuple[float, Patch]], base_name: str, base: Checkpoint | None) -> Export:
    """The weighted sum of adapters as one of the base's component, alphas in the metadata that diffusers gives peft.

    Raises NotRepresentable for terms without a low-rank form, for embeddings, and for a base of another library.
    """
    component = component_of(base, "diffusers")
    pairs = [
        replace(one, module=file_path(one.module, base))
        for one in one_layer(pairs_of(addends, base), "a diffusers file", "linear", "conv")
    ]
    tensors = []
    for pair in pairs:
        name = f"{component}.{pair.module}."
        tensors += [pair.tensor("A", name + "lora_A.weight"), pair.tensor("B", name + "lora_B.weight")]
        if pair.mag is not None:
            shape = (1, pair.mag.numel, 1, 1) if pair.layer == "conv" else (pair.mag.numel,)
            tensors.append(copied(name + "lora_magnitude_vector.weight", pair.mag, shape))
    config = {
        **patterns(pairs),
        "target_modules": [pair.module for pair in pairs],
        "use_dora": is_dora(pairs),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    told = json.dumps({f"{component}.{key}": value for key, value in config.items()}, sort_keys=True)
    return Export("diffusers", _WEIGHTS, tuple(tensors), {}, {"format": "pt", _METADATA: told})


SPEC = PatchKind(
    name="diffusers",
    title="diffusers LoRA",
    summary="LoRA or DoRA of a diffusion model, as diffusers saves it",
    source="diffusers save_lora_weights",
    recognise=recognise,
    read=read,
    export=export,
    family="diffusion",
    has_factors=True,
)
