"""LoRAs of diffusion models: the modules of one file by component, as terms of the component that is the base.

A file may hold adapters of several components (a U-Net or transformer, one to three text encoders), each of them a
checkpoint of its own in a sub-folder of the model. `terms` gives those of the one component that the base is: the one
all of whose modules the base has.

Source: diffusers 0.42 `loaders/lora_conversion_utils.py`, `utils/peft_utils.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from adapterhub.merging.checkpoint import Checkpoint, Folder, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.errors import InvalidPatch, NotRepresentable, ShapeMismatch, UnknownSite
from adapterhub.merging.folders import json_digest
from adapterhub.merging.lycoris import Shaped
from adapterhub.merging.patch import Facts, Patch, SiteTerm
from adapterhub.merging.peft_adapter import DTYPES, reshaped
from adapterhub.merging.sites import layers_of, targets_of

COMPONENTS = ("unet", "transformer", "transformer_2", "prior", *(f"text_encoder{end}" for end in ("", "_2", "_3")))
"""Sub-folders of a diffusers model whose weights adapters change."""


@dataclass(frozen=True)
class Module:
    """The adapter of one module. fields: A (r, in, ...) and B (out, r, ...), mag (out,) of a DoRA. scale: on B·A.

    other: what another term's fields come to, None for a LoRA.
    """

    component: str
    path: str
    fields: Mapping[str, TensorHandle]
    scale: float
    other: Shaped | None = None


def safetensors_of(folder: Folder, path: str) -> Iterator[tuple[str, Mapping[str, TensorHandle], Mapping[str, str]]]:
    """The safetensors files in `path` itself: name, tensors, metadata. Raises BrokenContainer."""
    for name in folder.names():
        if name.rpartition("/")[0] == path and name.endswith(".safetensors"):
            yield name, *open_tensors(folder, name, limit_bytes=PATCH_HEADER_BYTES)


def contradictions(file: str, module: Module) -> Iterator[str]:
    """What is wrong with the tensors of one module, each as a sentence."""
    where = f"{file}: {module.component}: {module.path}"
    A, B, mag = (module.fields.get(name) for name in ("A", "B", "mag"))
    if module.other is not None:
        pass  # `shaped` found no contradiction
    elif A is None or B is None:
        yield f"{where}: has only {', '.join(sorted(module.fields))}; A and B (down, up) are needed"
    elif len(A.shape) not in (2, 4) or len(A.shape) != len(B.shape) or 0 in A.shape + B.shape:
        yield f"{where}: down is {A.shape} and up {B.shape}; both of two or both of four dimensions are expected"
    elif A.shape[0] != B.shape[1] or set(B.shape[2:]) - {1}:
        yield f"{where}: down is {A.shape} and up {B.shape}: their ranks differ, or up has a kernel"
    elif mag is not None and mag.numel != B.shape[0]:
        yield f"{where}: the magnitudes are {mag.shape} for {B.shape[0]} outputs; save it normed over outputs"
    for field, handle in module.fields.items():
        if handle.dtype not in DTYPES:
            yield f"{where}: {field} is {handle.dtype}; floats are expected"


def with_modules(facts: Facts, folder: Folder, file: str, modules: list[Module], problems: tuple[str, ...]) -> Facts:
    """The facts, with what the modules say: ranks, targets, numbers, components."""
    dtypes: Counter[str] = Counter()
    for module in modules:
        for handle in module.fields.values():
            dtypes[handle.dtype] += handle.numel
    ranks = [module.fields["A"].shape[0] for module in modules if module.fields.get("A") and module.fields["A"].shape]
    paths = [module.path for module in modules]
    return replace(
        facts,
        effect="affine" if any("mag" in module.fields for module in modules) else "additive",
        rank_min=min(ranks, default=None),
        rank_max=max(ranks, default=None),
        targets=targets_of(paths),
        layers=layers_of(paths),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=folder.size(file),
        detail=dict(facts.detail) | {"components": sorted({module.component for module in modules})},
        problems=problems,
    )


def read(
    facts: Facts | None,
    folder: Folder,
    modules: list[Module],
    base: Checkpoint | None,
    finder: Callable[[Checkpoint], Callable[[str], str | None]],
) -> Patch:
    """The patch of the component that the base is; without a base, of all of them, below their components' names.

    finder: gives, for a base, what turns a module's path in the file into the module's name there. Raises InvalidPatch,
    UnknownSite where no component's modules are all in the base, ShapeMismatch.
    """
    if facts is None or facts.problems:
        raise InvalidPatch(facts.problems[0] if facts else "no LoRA of a diffusion model lies here")
    if base is None:
        placed = [(f"{one.component}.{one.path}.weight", one) for one in modules]
    else:
        placed = _placed(modules, base, finder(base))
    terms = [_term(site, module, base) for site, module in placed]
    counted = {"kind": facts.kind, "weights": [folder.digest(one) for one in facts.files]}
    return Patch(facts, json_digest(counted), tuple(sorted(terms, key=lambda term: term.site)))


def _placed(modules: list[Module], base: Checkpoint, find: Callable[[str], str | None]) -> list[tuple[str, Module]]:
    missing = ""
    fits: dict[str, list[tuple[str, Module]]] = {}
    for component in sorted({module.component for module in modules}):
        found = [(_named(one.path, find), one) for one in modules if one.component == component]
        absent = next((one for name, one in found if name is None), None)
        if absent is None:
            fits[component] = [(f"{name}.weight", one) for name, one in found]
        else:
            missing = missing or f"{component}.{absent.path}"
    if not fits:
        raise UnknownSite(missing, base.name)
    if len(fits) > 1:
        # Two text encoders of one architecture differ in width, or not at all: then only the names can tell.
        shapes = {component: all(_fits(site, one, base) for site, one in found) for component, found in fits.items()}
        fits = {component: found for component, found in fits.items() if shapes[component]} or fits
    if len(fits) > 1 and base.prefix.rpartition("/")[2] in fits:
        return fits[base.prefix.rpartition("/")[2]]
    if len(fits) > 1:
        raise InvalidPatch(f"base {base.name!r} fits {' and '.join(fits)} alike; split the file by component")
    return next(iter(fits.values()))


def _named(path: str, find: Callable[[str], str | None]) -> str | None:
    """The base's name of a module. transformers 5 stores CLIP's text model without the part that files begin with."""
    spelled = (path, path.removeprefix("text_model.").removeprefix("text_model_"))
    return next((name for name in map(find, spelled) if name is not None), None)


def _delta(module: Module) -> tuple[int, ...]:
    if module.other is not None:
        return module.other.rows, module.other.columns
    return (module.fields["B"].shape[0], *module.fields["A"].shape[1:])


def _fits(site: str, module: Module, base: Checkpoint) -> bool:
    """Whether the delta has the weight's shape, a kernel of 1 x 1 aside, which some trainers keep and some drop."""
    weight, delta = base.tensors[site].shape, _delta(module)
    if module.other is not None:
        return len(weight) >= 2 and (weight[0], prod(weight[1:])) == delta
    return weight == delta or (weight[:2] == delta[:2] and not set(weight[2:] + delta[2:]) - {1})


def _as_stored(module: Module, shape: tuple[int, ...]) -> Mapping[str, TensorHandle]:
    """The fields, a whole delta in its weight's shape."""
    return {name: reshaped(one, shape) if name == "delta" else one for name, one in module.fields.items()}


def _term(site: str, module: Module, base: Checkpoint | None) -> SiteTerm:
    if base is not None and not _fits(site, module, base):
        raise ShapeMismatch(site, _delta(module), base.name, base.tensors[site].shape)
    shape = _delta(module) if base is None else base.tensors[site].shape
    name = module.path if base is None else site.removesuffix(".weight")
    layer = {"layer": "conv", "shape": list(shape)} if len(shape) > 2 else {"layer": "linear"}
    options = {"module": name, "transpose": False} | layer
    if module.other is not None:
        return SiteTerm(site, module.other.term, _as_stored(module, shape), module.scale, options)
    if "mag" in module.fields:
        return SiteTerm(site, "dora", module.fields, options=options | {"scaling": module.scale})
    return SiteTerm(site, "lowrank", module.fields, module.scale, options)


# ---- writing ---------------------------------------------------------------------------------------------------------

TEXT_MODEL = "text_model."
"""What files put before the modules of CLIP's text model, and transformers 5 does not."""


def component_of(base: Checkpoint | None, form: str) -> str:
    """How files call the component that the base is: "unet", "transformer", "text_encoder_2", ...

    By the name of its folder, or its class. Raises NotRepresentable for a base of another library, or none.
    """
    if base is None:
        raise NotRepresentable(f"{form}: files name the component (U-Net, text encoder): name it with --base FOLDER")
    folder = (base.prefix or base.name).rstrip("/").rpartition("/")[2]
    if folder in COMPONENTS:
        return folder
    name = str(base.config.get("_class_name") or next(iter(base.config.get("architectures") or [""]), ""))
    for part, component in (("UNet", "unet"), ("Transformer", "transformer"), ("CLIPTextModel", "text_encoder")):
        if name.startswith(part) or (part == "Transformer" and part in name):
            return component
    raise NotRepresentable(
        f"{form}: base {base.name!r} is {name or 'of no class it names'}, no component of a diffusion model; convert "
        "with --to lora instead"
    )


def file_path(module: str, base: Checkpoint | None) -> str:
    """How files call a module of the base. The other way round than `_named`."""
    is_clip = base is not None and str(base.config.get("model_type", "")).startswith("clip_text")
    return TEXT_MODEL + module if is_clip and not module.startswith(TEXT_MODEL) else module
