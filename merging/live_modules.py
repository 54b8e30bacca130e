"""Edits of what a live model's modules give: hooks that add something to a hidden state, for several kinds.

An edit is computed in float32 where its tensors are stored in 16 bits, and rounded once into the module's output.
Imports torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.live import (
    by_name,
    check_shape,
    check_weight,
    hidden_size,
    hook_output,
    is_cached,
    module_at,
    override,
    tensor,
)
from adapterhub.merging.native_runtime import RuntimeFormat, RuntimePatch, read_runtime

if TYPE_CHECKING:
    import torch

Edit = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""`(input, output)` of a module gives what is added to its output, of the output's shape."""


@dataclass
class Call:
    """What the current call of the model is about. mask: (batch, tokens) or None. is_continued: from a cache."""

    mask: Any = None
    is_continued: bool = False


Make = Callable[[RuntimePatch, Mapping[str, "torch.Tensor"], Any, Call], Edit]
"""`(patch, a module's tensors, the module, call)` gives the edit of that module's output."""


def attach_edits(
    wanted: RuntimeFormat, make: Make, *, widths: Mapping[str, int], has_weight: bool
) -> Callable[[Any, Folder, str, float], Callable[[], None]]:
    """How a kind of the native format whose modules each have their edit goes on a live model.

    widths: fields and which of their sizes is that of a hidden state. has_weight: whether the weight scales edits.
    """

    def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
        patch = read_runtime(folder, path, wanted)
        if not has_weight:
            check_weight(wanted.kind, weight)
        for name, fields in patch.modules.items():
            module_at(model, name)
            for field, place in widths.items():
                found = fields[field].shape
                check_shape(model, f"{name}.{field}", found, (*found[:place], hidden_size(model), *found[place + 1 :]))

        def put() -> None:
            call, like = Call(), next(model.parameters())
            override(model, "forward", _watching(call))
            for name, fields in patch.modules.items():
                module = module_at(model, name)
                values = {field: _wide(tensor(handle, like)) for field, handle in fields.items()}
                put_edit(module, make(patch, values, module, call), weight)

        return live.attach(model, wanted.kind, put)

    return attach


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype.itemsize < 4 else value


def _watching(call: Call) -> Callable[..., Any]:
    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = by_name(original, args, kwargs)
        mask = given.get("attention_mask")
        call.mask = mask if mask is not None and mask.dim() == 2 else None
        call.is_continued = is_cached(given)
        return original(**given)

    return forward


def put_edit(module: Any, edit: Edit, weight: float = 1.0) -> None:
    """Let a module add `weight` times an edit to what it gives, or to the first of the things that it gives."""

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        y = output[0] if isinstance(output, tuple) else output
        changed = (y + weight * edit(x, y)).to(y.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hook_output(module, hook)


def activation_of(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of that name, as transformers spells it; "none" for what gives back what it is given."""
    from torch.nn.functional import leaky_relu
    from transformers.activations import get_activation

    if name == "none":
        return lambda x: x
    named: Any = get_activation
    found: Callable[[torch.Tensor], torch.Tensor] = leaky_relu if name == "leaky_relu" else named(name)
    return found
