"""Low-rank deltas on a live model's linear layers that depend on the input: what routed adapters have in common.

A hook adds the delta to what the layer gives, in float32 where the adapter is stored so, rounded once. Conv1D layers,
which store their weight transposed, are linear layers as any other. Imports torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.live import check_parameters, check_shape, hook_output, module_at, put_parameters, tensor
from adapterhub.merging.peft_adapter import Adapter, Module, Tuner, checked

if TYPE_CHECKING:
    import torch

Delta = Callable[["torch.Tensor"], "torch.Tensor"]
"""What is added to a layer's output (…, out) for its input (…, in)."""


@dataclass
class Call:
    """What the current call of the model is about, for the deltas in it; each kind's `watch` fills in what it needs."""

    task_ids: Any = None
    offsets: Sequence[int | None] = ()
    scalings: Any = None


Make = Callable[[Adapter, Module, Mapping[str, "torch.Tensor"], Call], Delta]
"""`(adapter, module, its tensors, call)` gives one layer's delta."""

Watch = Callable[[Any, Adapter, Call], None]
"""`(model, adapter, call)` overrides the model's methods so that `call` is filled in."""


def _no_watch(model: Any, adapter: Adapter, call: Call) -> None:
    pass


def attach_deltas(
    kind: str, tuner: Tuner, make: Make, *, fits: Callable[[Any, Adapter], None] | None = None, watch: Watch = _no_watch
) -> Callable[[Any, Folder, str, float], Callable[[], None]]:
    """How a kind whose every module has its delta goes on a live model. fits: raises where it does not.

    The weight scales the deltas.
    """

    def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
        adapter = checked(folder, path, tuner)
        (fits or check_factors)(model, adapter)
        check_parameters(model, adapter.whole)

        def put() -> None:
            call = Call()
            deltas = {
                name: make(adapter, module, fields_of(model, module), call) for name, module in adapter.modules.items()
            }
            put_deltas(model, deltas, weight)
            put_parameters(model, adapter.whole)
            watch(model, adapter, call)

        return live.attach(model, kind, put)

    return attach


def put_deltas(model: Any, deltas: Mapping[str, Delta], weight: float = 1.0) -> None:
    """Let the layers of these paths add `weight` times their delta."""

    def hook_of(delta: Delta) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            added = delta(args[0] if args else kwargs["x"])
            return (output + weight * added).to(output.dtype)

        return hook

    for path, delta in deltas.items():
        hook_output(module_at(model, path), hook_of(delta))


def features(model: Any, path: str) -> tuple[int, int]:
    """(in, out) of the linear layer at `path`. Raises UnknownSite, NotFoldable for another kind of module."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    module = module_at(model, path)
    if isinstance(module, Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    raise NotFoldable(f"{path}: is a {type(module).__name__}; this adapter goes on linear layers")


def fields_of(model: Any, module: Module) -> dict[str, torch.Tensor]:
    """A module's tensors, on the device of the layer they belong to; 16-bit floats as float32, as peft runs them."""
    weight = module_at(model, module.path).weight
    values = {name: tensor(handle, weight) for name, handle in module.fields.items()}
    return {name: one.float() if one.dtype.itemsize < 4 else one for name, one in values.items()}


def check_factors(model: Any, adapter: Adapter) -> None:
    """Raises ShapeMismatch, UnknownSite or NotFoldable unless A (r, in) and B (out, r) fit their layers."""
    for path, module in adapter.modules.items():
        inner, outer = features(model, path)
        for name, handle in module.fields.items():
            if name.startswith("A"):
                check_shape(model, f"{path}.{name}", handle.shape, (handle.shape[0], inner))
            elif name.startswith("B"):
                check_shape(model, f"{path}.{name}", handle.shape, (outer, handle.shape[1]))
