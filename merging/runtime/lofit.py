"""lofit: z + k · (A ⊙ z + v) on single attention heads, before the output projection.

Source: arXiv:2406.01563 sec. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.live import check_shape, module_at, tensor
from adapterhub.merging.live_lora import features
from adapterhub.merging.native_runtime import read_runtime
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.representations import LOFIT

if TYPE_CHECKING:
    import torch


def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
    patch = read_runtime(folder, path, LOFIT)
    for name, fields in patch.modules.items():
        inner, _ = features(model, name)
        for field, handle in fields.items():
            heads = handle.shape[0]
            check_shape(model, f"{name}.{field}", handle.shape, (heads, inner // heads if inner % heads == 0 else 0))

    def put() -> None:
        for name, fields in patch.modules.items():
            module = module_at(model, name)
            values = {field: tensor(handle, module.weight).flatten() for field, handle in fields.items()}
            module.register_forward_pre_hook(_hook(values, weight))

    return live.attach(model, "lofit", put)


def _hook(values: Mapping[str, torch.Tensor], weight: float) -> Callable[..., Any]:
    """z + k · (A ⊙ z + v), z the heads side by side: what the output projection is given."""

    def hook(module: Any, args: Any) -> Any:
        z = args[0]
        added = values["A"] * z if "A" in values else 0.0
        return ((z + weight * (added + values.get("v", 0.0))).to(z.dtype), *args[1:])

    return hook


SPEC = RuntimeSpec(
    name="lofit",
    summary="Offsets and scales of single attention heads",
    source="arXiv:2406.01563 sec. 3",
    attach=attach,
)
