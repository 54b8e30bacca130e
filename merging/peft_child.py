"""The child that folds an adapter with peft itself, on a bare tree of modules that holds only the targeted sites.

Run by `skeleton.py` as `python -m adapterhub.merging.peft_child`, confined by `sandbox`. The tree has nothing but the
modules that the adapter changes, under their own dotted names and in their own order, with the base's values in
float32: peft asks no more of a model. The configuration arrives rebuilt from checked fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.merging import sandbox

if TYPE_CHECKING:
    import torch

_NOT_OF_THE_MODEL = ("auto_map", "quantization_config", "_name_or_path", "dtype", "torch_dtype", "architectures")
"""Keys of a base's config.json that say nothing of which modules it has."""


def fold(request: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """By group the file whose tensors are what the adapter makes of its modules: {"files": [...]}.

    request: peft_type, config (checked fields), modules ({name, layer, has_bias} in any order), groups (names of
    modules that are folded together), is_delta (write W' - W instead of W'), banks (keys all groups need), order (the
    base's config.json and live names, where the order of modules counts; else null).
    Folder: base.safetensors with `<module>.weight` and `.bias`; adapter.safetensors as peft saved it.
    """
    modules = {one["name"]: one for one in request["modules"]}
    places = _places(request["order"]) if request["order"] else {}
    files = []
    for number, names in enumerate(request["groups"]):
        ordered = sorted(names, key=lambda name: places[name]) if places else names
        file = f"out-{number}.safetensors"
        _fold_group([modules[name] for name in ordered], request, folder, folder / file)
        files.append(file)
    return {"files": files}


def _fold_group(modules: Sequence[Mapping[str, Any]], request: Mapping[str, Any], folder: Path, target: Path) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import save_file

    # Stored positions are foreign: one out of range is to be an error, not a read from elsewhere.
    torch.sparse.check_sparse_tensor_invariants.enable()  # type: ignore[no-untyped-call]
    if request["peft_type"] == "BOFT":
        _give_blocks()
    tree, before = _tree(modules, folder / "base.safetensors")
    config = _config(request["peft_type"], request["config"], modules)
    adapted: Any = PeftModel(tree, config, autocast_adapter_dtype=False)
    _load(adapted, modules, request["banks"], folder / "adapter.safetensors")
    # Merged in float64, so that what is handed back is rounded once.
    adapted.double().base_model.merge_and_unload(safe_merge=True)
    found = {}
    for name, value in before.items():
        after = _parameter(tree, name)
        if after.shape != value.shape:
            raise ValueError(f"{name}: peft gives {tuple(after.shape)} for {tuple(value.shape)}")
        changed = after.double() - value.double() if request["is_delta"] else after
        found[name] = changed.to(torch.float32).contiguous()
    save_file(found, target)


def _tree(modules: Sequence[Mapping[str, Any]], base: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The tree of modules in the given order, and the base's values by parameter."""
    import torch
    from safetensors import safe_open

    root = torch.nn.Module()
    before: dict[str, torch.Tensor] = {}
    with safe_open(base, "pt") as file:
        for one in modules:
            weight = file.get_tensor(one["name"] + ".weight").float()
            bias = file.get_tensor(one["name"] + ".bias").float() if one["has_bias"] else None
            _put(root, one["name"], _layer(one["layer"], weight, bias))
            before[one["name"] + ".weight"] = weight.clone()
            if bias is not None:
                before[one["name"] + ".bias"] = bias.clone()
    return root, before


def _layer(kind: str, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Module:
    """A module of that kind with these values: linear, conv1d, embedding or conv."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shape = tuple(weight.shape)
    layer: Any
    if kind == "embedding":
        layer = nn.Embedding(shape[0], shape[1])
    elif kind == "conv1d":
        layer = Conv1D(shape[1], shape[0])  # type: ignore[no-untyped-call]
    elif kind == "conv":
        build = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
        layer = build(shape[1], shape[0], shape[2:], bias=bias is not None)  # type: ignore[arg-type]
    else:
        layer = nn.Linear(shape[1], shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    built: nn.Module = layer
    return built


def _put(root: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    from torch import nn

    *parents, last = name.split(".")
    here = root
    for part in parents:
        if part not in here._modules:
            here.add_module(part, nn.Module())
        here = here.get_submodule(part)
    here.add_module(last, layer)


def _parameter(tree: torch.nn.Module, name: str) -> torch.Tensor:
    found: torch.Tensor = tree.get_parameter(name).data
    return found


def _config(peft_type: str, values: Mapping[str, Any], modules: Sequence[Mapping[str, Any]]) -> Any:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]
    known = {one.name for one in fields(kind)}
    own: dict[str, Any] = {"target_modules": [one["name"] for one in modules]}
    if "fan_in_fan_out" in known:
        own["fan_in_fan_out"] = all(one["layer"] == "conv1d" for one in modules)
    if "progressbar" in known:
        own["progressbar"] = False
    return kind(**values, **own)


def _load(adapted: Any, modules: Sequence[Mapping[str, Any]], banks: Sequence[str], file: Path) -> None:
    """Put the stored numbers into peft's model. Raises ValueError for one without a place, and for a place without one.

    peft itself only warns of both.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import safe_open

    starts = tuple(f"base_model.model.{one['name']}." for one in modules)
    with safe_open(file, "pt") as stored:
        names = [key for key in stored.keys() if key in banks or key.startswith(starts)]  # noqa: SIM118  # no mapping
        state = {key: stored.get_tensor(key) for key in names}
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for key, value in state.items():
        if not value.is_floating_point() or key not in wanted:
            continue
        if wanted[key].shape != value.shape:
            raise ValueError(
                f"{key} is {tuple(value.shape)}; this base and configuration need {tuple(wanted[key].shape)}"
            )
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    result: Any = set_peft_model_state_dict(adapted, state)
    if result.unexpected_keys:
        raise ValueError(f"{result.unexpected_keys[0]} has no place in a {len(modules)}-module adapter of this kind")


def _give_blocks() -> None:
    """In place of the CUDA kernel that peft would compile, the same in torch.

    Without the kernel peft takes one butterfly factor for however many there are, and does not load the others.
    Source: peft 0.21 `tuners/boft/layer.py`, get_fbd_cuda, and `fbd/fbd_cuda_kernel.cu`.
    """
    from peft.tuners.boft import layer

    class Blocks:
        @staticmethod
        def forward(blocks: torch.Tensor) -> tuple[torch.Tensor]:
            """(factors, n, b, b) as block-diagonal matrices (factors, n·b, n·b)."""
            factors, count, size, _ = blocks.shape
            whole = blocks.new_zeros(factors, count, size, count, size)
            for number in range(count):
                whole[:, number, :, number] = blocks[:, number]
            return (whole.view(factors, count * size, count * size),)

    layer._FBD_CUDA = Blocks  # type: ignore[assignment]


# ---- the order of modules --------------------------------------------------------------------------------------------


def _places(order: Mapping[str, Any]) -> dict[str, int]:
    """Each module's position in the model that transformers builds from the base's own configuration, without weights.

    Tuners that draw numbers module after module depend on it. order: model (config.json), live ({module: its name}).
    """
    places = {name: number for number, name in enumerate(_module_names(order["model"]))}
    for module, live in order["live"].items():
        if live not in places:
            raise LookupError(f"{module}: transformers' {order['model'].get('architectures')} has no module {live}")
    return {module: places[live] for module, live in order["live"].items()}


def _module_names(config: Mapping[str, Any]) -> Iterator[str]:
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    model_type, wanted = str(config.get("model_type")), next(iter(config.get("architectures") or []), None)
    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    known = [table[model_type] for table in tables if model_type in table]
    if wanted not in {one for names in known for one in ([names] if isinstance(names, str) else names)}:
        raise LookupError(f"config.json of the base names architecture {wanted!r} of {model_type!r}, unknown here")
    plain = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL and _is_sane(value)}
    plain.pop("model_type", None)
    with torch.device("meta"):
        model = getattr(transformers, wanted)(transformers.AutoConfig.for_model(model_type, **plain))
    return (name for name, _ in model.named_modules())


def _is_sane(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


if __name__ == "__main__":
    sandbox.serve(fold)
