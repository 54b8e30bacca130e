"""LoRAs beside the weights of a base: rows of one batch go through adapters of their own, and the base is not changed.

A row computes W x + B A x, which is what W + B A would give up to rounding. The adapters of a pass lie side by side:
one product with all their A, a mask that leaves each row its own, one product with all their B; so a layer costs two
small products whatever the number of adapters. Imports torch: only an engine's process loads this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapterhub.hub.serving.loading import Loaded


@dataclass(eq=False)
class Adapter:
    """A variant that is not merged: A (r, in) and B (out, r) by the module's path in the model, in its dtype.

    Scales and weights are in B. loaded: the base as it is used with this adapter. paid_s: seconds that passes of this
    adapter alone took longer than merged ones would have.
    """

    vid: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    loaded: Loaded
    paid_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        return sum(A.nbytes + B.nbytes for A, B in self.factors.values())


@dataclass(frozen=True)
class _Joint:
    """All adapters of a pass at one module: A (Σr, in), B (out, Σr), and which of the Σr belong to which adapter."""

    A: Tensor
    B: Tensor
    owners: Tensor


class Mixture:
    """The hooks on one model, and which adapter each row of the next pass uses. For the one thread that computes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._handles: dict[str, Any] = {}
        self._adapters: tuple[Adapter, ...] = ()
        self._joint: dict[str, _Joint] = {}
        self._masks: dict[str, Tensor | None] = {}
        self._rows: tuple[Adapter | None, ...] = ()
        self._owner_of_row: Tensor | None = None

    def use(self, rows: Sequence[Adapter | None]) -> None:
        """The adapter of each row of the passes to come, None for the base itself."""
        if tuple(rows) == self._rows:
            return
        self._rows = tuple(rows)
        adapters = tuple(dict.fromkeys(one for one in rows if one is not None))
        if adapters != self._adapters:
            self._adapters, self._joint = adapters, {}
            for name in {name for one in adapters for name in one.factors} - self._handles.keys():
                self._handles[name] = self._modules[name].register_forward_hook(self._hook(name))
        numbers = [-1 if one is None else adapters.index(one) for one in rows]
        self._owner_of_row = torch.tensor(numbers, device=next(self._model.parameters()).device)
        self._masks = {}

    def take_off(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._rows, self._adapters, self._joint, self._masks = {}, (), (), {}, {}

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            joint = self._joint.get(name) or self._joined(name)
            if joint is None:
                return None
            began = perf_counter()
            hidden = inputs[0] @ joint.A.T  # (rows, tokens, Σr)
            mask = self._mask(name, joint, hidden)
            if mask is not None:
                hidden = hidden * mask
            output = output + hidden @ joint.B.T
            if len(self._adapters) == 1:
                self._adapters[0].paid_s += perf_counter() - began
            return output

        return add

    def _joined(self, name: str) -> _Joint | None:
        found = [(number, one.factors[name]) for number, one in enumerate(self._adapters) if name in one.factors]
        if not found:
            return None
        A, B = torch.cat([A for _, (A, _) in found]), torch.cat([B for _, (_, B) in found], dim=1)
        owners = [number for number, (A_, _) in found for _ in range(len(A_))]
        self._joint[name] = _Joint(A, B, torch.tensor(owners, device=A.device))
        return self._joint[name]

    def _mask(self, name: str, joint: _Joint, hidden: Tensor) -> Tensor | None:
        """(rows, 1, Σr), 1 where the rank is the row's own; None where all ranks are every row's."""
        if name not in self._masks:
            assert self._owner_of_row is not None
            own = joint.owners[None, :] == self._owner_of_row[:, None]
            self._masks[name] = None if bool(own.all()) else own[:, None, :].to(hidden.dtype)
        return self._masks[name]


def oriented(module: nn.Module, left: Tensor, right: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """A and B of a module whose weight changes by left @ right; None for a module that is no linear layer."""
    if isinstance(module, nn.Linear):
        A, B = right, left
    elif isinstance(module, Conv1D):
        # its weight is stored (in, out)
        A, B = left.T, right.T
    else:
        return None
    return A.to(dtype).contiguous(), B.to(dtype).contiguous()
