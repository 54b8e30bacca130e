"""Patches beside the weights of a base: rows of one batch go through adapters of their own, the base is not changed.

A row computes W x + B A x, which is what W + B A would give up to rounding. In a pass of one token a row the adapters
lie one above the other, and a layer costs two batched products whatever their number; each adapter is read once for all
of its rows. Where rows have many tokens, each adapter takes its own. Entries that an adapter adds to a weight are a
sparse product likewise.
Imports torch: only an engine's process loads this.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from adapterhub.hub.serving.loading import Loaded

FEW = 2
"""Adapters that are not worth to be laid one above the other."""


@dataclass(eq=False)
class Adapter:
    """A variant that is not merged: A (r, in) and B (out, r) by the module's path in the model, in its dtype.

    Scales and weights are in B. entries: what is added to single entries of a weight, as a sparse matrix (out, in) in
    float32. loaded: the base as it is used with this adapter. paid_s: seconds that passes of this
    adapter alone took longer than merged ones would have.
    """

    vid: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    loaded: Loaded
    entries: Mapping[str, Tensor] = field(default_factory=dict)
    paid_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        return sum(A.nbytes + B.nbytes for A, B in self.factors.values()) + sum(map(_bytes, self.entries.values()))

    @property
    def sites(self) -> set[str]:
        return {*self.factors, *self.entries}


@dataclass(frozen=True)
class _Stack:
    """Adapters at one module, one above the other: A (k, r, in), B (k, out, r), lower ranks filled up with zeros."""

    members: tuple[Adapter, ...]
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class _Places:
    """Which rows of a pass go through which adapter of a stack.

    taken: the rows (k * m) of each adapter in turn, filled up with row 0 where it has fewer than m. given: the places
    (n) of `taken` that are no filling, None where there is none. to: their rows.
    """

    taken: Tensor
    given: Tensor | None
    to: Tensor


class Mixture:
    """The hooks on one model, and which adapter each row of the next pass uses. For the one thread that computes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._handles: dict[str, Any] = {}
        self._rows: tuple[Adapter | None, ...] = ()
        self._tokens: int | None = None
        self._rows_of: dict[Adapter, Tensor] = {}
        self._stacked: tuple[Adapter, ...] = ()
        self._stacks: dict[str, _Stack] = {}
        self._places: dict[tuple[Adapter, ...], _Places] = {}

    def use(self, rows: Sequence[Adapter | None], tokens: int | None = None) -> None:
        """The adapter of each row of the passes to come, None for the base itself.

        tokens: of each row in a pass; not needed where all rows use one.
        """
        self._tokens = tokens
        if tuple(rows) == self._rows:
            return
        self._rows = tuple(rows)
        device = next(self._model.parameters()).device
        numbers: dict[Adapter, list[int]] = {}
        for number, one in enumerate(rows):
            if one is not None:
                numbers.setdefault(one, []).append(number)
        self._rows_of = {one: torch.tensor(found, device=device) for one, found in numbers.items()}
        self._places = {}
        for name in set[str]().union(*(one.sites for one in numbers)) - self._handles.keys():
            self._handles[name] = self._modules[name].register_forward_hook(self._hook(name))

    def take_off(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._rows, self._rows_of = {}, (), {}
        self._stacked, self._stacks, self._places = (), {}, {}

    def _hook(self, name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            began = perf_counter()
            self._add(name, inputs[0], output)
            if len(self._rows_of) == 1:
                next(iter(self._rows_of)).paid_s += perf_counter() - began
            return output

        return add

    def _add(self, name: str, taken: Tensor, output: Tensor) -> None:
        """Add to the module's output, which nobody else has seen yet, what its adapters give."""
        self._add_products(name, taken, output)
        for one, rows in self._rows_of.items():
            if name in one.entries and len(rows) == len(self._rows):
                _add_entries(one.entries[name], taken, output)
            elif name in one.entries:
                own, to = self._by_row(taken), self._by_row(output)
                found = to.new_zeros(len(rows), *to.shape[1:])
                _add_entries(one.entries[name], own[rows], found)
                to.index_add_(0, rows, found)

    def _by_row(self, states: Tensor) -> Tensor:
        """(rows, tokens, …), where a model may lay the rows one after the other before its linear layers."""
        assert self._tokens is not None
        return states.view(len(self._rows), self._tokens, states.shape[-1])

    def _add_products(self, name: str, taken: Tensor, output: Tensor) -> None:
        users = [one for one in self._rows_of if name in one.factors]
        if len(users) == 1 and len(self._rows_of[users[0]]) == len(self._rows):
            A, B = users[0].factors[name]
            output.view(-1, output.shape[-1]).addmm_(taken.reshape(-1, taken.shape[-1]) @ A.T, B.T)
        elif users:
            taken, output = self._by_row(taken), self._by_row(output)
            if taken.shape[1] > 1 or len(users) <= FEW:
                self._add_by_adapter(name, users, taken, output)
            else:
                self._add_stacked(self._stack(name), taken, output)

    def _add_by_adapter(self, name: str, users: Sequence[Adapter], taken: Tensor, output: Tensor) -> None:
        """Each adapter takes its own rows: of many tokens, or adapters are few. taken, output: (rows, tokens, …)."""
        for one in users:
            A, B = one.factors[name]
            rows = self._rows_of[one]
            output.index_add_(0, rows, (taken[rows] @ A.T) @ B.T)

    def _add_stacked(self, stack: "_Stack", taken: Tensor, output: Tensor) -> None:
        """taken: (rows, 1, in); output: (rows, 1, out)."""
        places = self._placed(stack)
        batched = taken.index_select(0, places.taken).view(len(stack.members), -1, taken.shape[-1])  # (k, m, in)
        found = batched @ stack.A.transpose(1, 2) @ stack.B.transpose(1, 2)  # (k, m, out)
        found = found.view(-1, 1, output.shape[-1])
        if places.given is not None:
            found = found.index_select(0, places.given)
        output.index_add_(0, places.to, found)

    def _stack(self, name: str) -> _Stack:
        """The adapters of a pass at a module. Kept while the rows that come and go still use half of it."""
        used = self._rows_of.keys()
        if not used <= set(self._stacked) or 2 * len(used) < len(self._stacked):
            self._stacked, self._stacks = tuple(used), {}
        if name not in self._stacks:
            members = tuple(one for one in self._stacked if name in one.factors)
            factors = [one.factors[name] for one in members]
            rank = max(len(A) for A, _ in factors)
            A = torch.stack([pad(A, (0, 0, 0, rank - len(A))) for A, _ in factors])
            B = torch.stack([pad(B, (0, rank - B.shape[1])) for _, B in factors])
            self._stacks[name] = _Stack(members, A, B)
        return self._stacks[name]

    def _placed(self, stack: _Stack) -> _Places:
        if stack.members not in self._places:
            rows = [self._rows_of[one].tolist() if one in self._rows_of else [] for one in stack.members]
            most = max(map(len, rows))
            taken = [row for own in rows for row in [*own, *[0] * (most - len(own))]]
            given = [number * most + place for number, own in enumerate(rows) for place in range(len(own))]
            device = stack.A.device
            self._places[stack.members] = _Places(
                torch.tensor(taken, device=device),
                torch.tensor(given, device=device) if len(given) < len(taken) else None,
                torch.tensor([row for own in rows for row in own], device=device),
            )
        return self._places[stack.members]


def _add_entries(entries: Tensor, taken: Tensor, output: Tensor) -> None:
    """Add what sparse entries (out, in) give of `taken` (…, in) to `output` (…, out)."""
    flat = taken.reshape(-1, taken.shape[-1]).float()
    output.view(-1, output.shape[-1]).add_((entries @ flat.T).T)


def _bytes(entries: Tensor) -> int:
    if entries.layout is torch.sparse_csr:
        return entries.crow_indices().nbytes + entries.col_indices().nbytes + entries.values().nbytes
    return entries.indices().nbytes + entries.values().nbytes


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by its weight and does nothing else with it."""
    return isinstance(module, nn.Linear | Conv1D)


def oriented(module: nn.Module, left: Tensor, right: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and B of a linear module whose weight, as it is stored, changes by left @ right."""
    A, B = (left.T, right.T) if isinstance(module, Conv1D) else (right, left)
    return A.to(dtype).contiguous(), B.to(dtype).contiguous()


def sparse(module: Any, positions: Tensor, values: Tensor, device: torch.device) -> Tensor:
    """Entries of a linear module's weight at flat positions of it as it is stored, as a sparse matrix (out, in)."""
    is_turned = isinstance(module, Conv1D)  # its weight is stored (in, out)
    rows, columns = module.weight.shape if is_turned else (module.out_features, module.in_features)
    at = torch.stack([positions // columns, positions % columns])
    size = (columns, rows) if is_turned else (rows, columns)
    at = at.flip(0) if is_turned else at
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse ", UserWarning)  # that its API may change, and that it may be checked
        made = torch.sparse_coo_tensor(at, values, size, device=device, check_invariants=True).coalesce()
        if device.type == "cpu" and not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
            return made  # slower, and everywhere
        by_row = made.to_sparse_csr()
        indices = by_row.crow_indices().int(), by_row.col_indices().int()  # 32 bits: half the bytes, and MKL's own
        return torch.sparse_csr_tensor(*indices, by_row.values(), size)
