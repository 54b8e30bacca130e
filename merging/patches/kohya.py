"""kohya: LoRA and DoRA of diffusion models as kohya's sd-scripts saves them, and LyCORIS's LoHa, LoKr and full deltas.

One safetensors file; a module is `<prefix>_<path with _ for .>` with lora_down.weight (r, in[, k, k]), lora_up.weight
(out, r[, 1, 1]) and alpha, a scalar: its delta is alpha / r · up @ down, and without alpha that of alpha = r. DoRA adds
dora_scale, one magnitude an output; what LyCORIS adds is told in `lycoris.py`. The prefix names the component. An
underscore in a path may be a dot, which the base's own list of modules decides; SDXL's paths are often those of the
original release, which no diffusers folder has.

Source: kohya-ss/sd-scripts `networks/lora.py`; diffusers 0.42 `loaders/lora_conversion_utils.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adapterhub.merging import lycoris
from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle
from adapterhub.merging.diffusion import (
    Module,
    component_of,
    contradictions,
    file_path,
    safetensors_of,
    with_modules,
)
from adapterhub.merging.diffusion import read as read_modules
from adapterhub.merging.encodings import as_floats
from adapterhub.merging.errors import InvalidPatch, NotRepresentable
from adapterhub.merging.lowrank_export import copied, one_layer, pairs_of
from adapterhub.merging.patch import Export, Facts, Patch, PatchKind

_COMPONENTS: Mapping[str, str] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
}
_FIELDS = {"lora_down.weight": "A", "lora_up.weight": "B", "dora_scale": "mag"}
_OTHERS = ("hada_", "lokr_", "lora_mid", "oft_", "diff", "boft_", "w_norm", "b_norm")
"""Beginnings of the fields that LyCORIS adds; those that `lycoris.py` does not know are shown, and not merged."""


def _modules(file: str, tensors: Mapping[str, TensorHandle]) -> tuple[list[Module], tuple[str, ...]]:
    """The modules of one file, and what is wrong with it."""
    problems: list[str] = []
    fields: dict[str, dict[str, TensorHandle]] = {}
    alphas: dict[str, float] = {}
    for name, handle in sorted(tensors.items()):
        module, _, field = name.partition(".")
        if field == "alpha" and _component(module):
            alpha = float(as_floats(handle).reshape(-1)[0]) if handle.numel == 1 else math.nan
            alphas[module] = alpha
            if not 0 < alpha < 1e9:
                problems.append(f"{file}: {name[:200]} is {alpha} {handle.shape}; one number above 0 is expected")
        elif field in _FIELDS and _component(module):
            fields.setdefault(module, {})[_FIELDS[field]] = handle
        elif field in lycoris.FIELDS and _component(module):
            fields.setdefault(module, {})[field] = handle
        else:
            why = "of LyCORIS, which is shown and not merged" if field.startswith(_OTHERS) else "no part of a LoRA"
            problems.append(f"{file}: tensor {name[:200]} is {why}; {', '.join(_FIELDS)} and alpha are expected")
    problems += [f"{file}: {one[:200]}: has an alpha and no factors" for one in sorted(alphas.keys() - fields.keys())]
    modules = []
    for name, found in fields.items():
        prefix = _component(name)
        try:
            fields_here, other = _as_terms(found)
        except ValueError as error:
            problems.append(f"{file}: {name[:200]}: {error}")
            continue
        rank = fields_here["A"].shape[0] if "A" in fields_here and fields_here["A"].shape else 0
        rank = rank if other is None else other.r or 0
        scale = alphas.get(name, rank) / rank if rank else 1.0
        modules.append(Module(_COMPONENTS[prefix], name.removeprefix(prefix), fields_here, scale, other))
        problems += contradictions(file, modules[-1])
    return modules, tuple(problems)


def _as_terms(found: Mapping[str, TensorHandle]) -> tuple[Mapping[str, TensorHandle], lycoris.Shaped | None]:
    """The fields of a module's term, and what LyCORIS makes of them, None for a LoRA. Raises ValueError."""
    if lycoris.MID in found and {"A", "B"} <= found.keys():
        joined = {"A": lycoris.with_core(found["A"], found[lycoris.MID])}
        return {name: one for name, one in found.items() if name != lycoris.MID} | joined, None
    if found.keys() <= {"A", "B", "mag"}:
        return found, None
    other, fields = lycoris.shaped(found)
    return fields, other


def _component(module: str) -> str:
    return next((prefix for prefix in _COMPONENTS if module.startswith(prefix)), "")


def _open(folder: Folder, path: str) -> tuple[str, list[Module], tuple[str, ...]] | None:
    for file, tensors, _ in safetensors_of(folder, path):
        if any(_component(name) and name.partition(".")[2].startswith(("lora_", *_OTHERS)) for name in tensors):
            return file, *_modules(file, tensors)
    return None


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of a kohya file: tensors named lora_unet_..., lora_te_... and so on. The first by name of a folder."""
    found = _open(folder, path)
    if found is None:
        return None
    file, modules, problems = found
    reason = (
        f"{file} has tensors named as kohya's, of {', '.join(sorted({one.component for one in modules})) or 'none'}"
    )
    facts = Facts(kind="kohya", reason=reason, path=path, files=(file,))
    return with_modules(facts, folder, file, modules, problems)


def _finder(base: Checkpoint) -> Callable[[str], str | None]:
    """What finds a module of the base by its path with underscores. Raises InvalidPatch where two are spelled alike."""
    spelled: dict[str, str] = {}
    for name in base.tensors:
        module, _, last = name.rpartition(".")
        if last == "weight" and spelled.setdefault(module.replace(".", "_"), module) != module:
            raise InvalidPatch(f"base {base.name!r}: {module} and another module are one name with underscores")
    return spelled.get


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The adapter of the base's component as lowrank and dora terms. Raises what `diffusion.read` raises."""
    found = _open(folder, path)
    return read_modules(recognise(folder, path), folder, found[1] if found else [], base, _finder)


_WEIGHTS = "pytorch_lora_weights.safetensors"
"""Where diffusers looks for a file whose name it is not told."""


def export(addends: Sequence[tuple[float, Patch]], base_name: str, base: Checkpoint | None) -> Export:
    """The weighted sum of adapters as one of the base's component, alpha beside the factors of each module.

    Raises NotRepresentable for terms without a low-rank form, for embeddings, for a base of another library, and for a
    component that such files do not name.
    """
    component = component_of(base, "kohya")
    prefix = next((one for one, name in _COMPONENTS.items() if name == component), None)
    if prefix is None:
        known = ", ".join(dict.fromkeys(_COMPONENTS.values()))
        raise NotRepresentable(f"kohya: no file names the component {component}; {known} are: convert to diffusers")
    tensors = []
    for pair in one_layer(pairs_of(addends, base), "a kohya file", "linear", "conv"):
        name = prefix + file_path(pair.module, base).replace(".", "_")
        tensors += [pair.tensor("A", f"{name}.lora_down.weight"), pair.tensor("B", f"{name}.lora_up.weight")]
        alpha = np.array(pair.alpha, "<f4")
        tensors.append(copied(f"{name}.alpha", TensorHandle.of_bytes(f"{name}.alpha", "F32", (), alpha.tobytes())))
        if pair.mag is not None:
            shape = (pair.mag.numel, *(1 for _ in pair.shapes["A"][1:]))
            tensors.append(copied(f"{name}.dora_scale", pair.mag, shape))
    return Export("kohya", _WEIGHTS, tuple(tensors), {})


SPEC = PatchKind(
    name="kohya",
    title="kohya LoRA",
    summary="LoRA, DoRA, LoHa, LoKr or whole deltas of a diffusion model, as kohya's sd-scripts and LyCORIS save them",
    source="kohya-ss/sd-scripts",
    recognise=recognise,
    read=read,
    export=export,
    family="diffusion",
    has_factors=True,
)
