"""What terms do to one site together, tile by tile.

A tensor is seen as a matrix and done in tiles of whole rows whose size depends on its shape alone, so that bytes do not
depend on who does how much of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.ops.tensors import as_matrix, from_bytes
from adapterhub.merging.ops.tiles import tiles
from adapterhub.merging.ops.uploads import uploaded
from adapterhub.merging.registry import Apply, Part
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.checkpoint import TensorHandle
    from adapterhub.merging.patch import SiteTerm


def read(handle: TensorHandle, device: str = "cpu") -> torch.Tensor:
    """The handle's values on a device. On a CPU they may share the mapped file's memory: not to be written to."""
    return uploaded(from_bytes(handle.read(), handle.dtype, handle.shape), device)


def part(term: SiteTerm, weight: float = 1.0, device: str = "cpu") -> Part:
    """The term with its tensors on a device, its own scale multiplied into the weight."""
    fields = {name: read(handle, device) for name, handle in term.fields.items()}
    return Part(fields, weight * term.scale, term.options)


@dataclass(frozen=True)
class Effects:
    """What is done to a site: first what depends on its values, then what is added to them, each in order."""

    changing: tuple[Apply, ...] = ()
    additive: tuple[Apply, ...] = ()

    def act(self, tile: torch.Tensor, start: int, stop: int) -> None:
        """Change rows start..stop, given as a contiguous tile with the base's values, in place."""
        for apply in (*self.changing, *self.additive):
            apply(tile, start, stop)

    def change(self, W: torch.Tensor) -> torch.Tensor:
        """The delta at a base with values W (float32 or float64), in W's dtype and shape; W is not modified.

        What depends on W is taken as its change of W; what does not is never added to W, so no digit is lost to it.
        """
        import torch

        source = as_matrix(W)
        result = torch.empty_like(W, memory_format=torch.contiguous_format)
        target = as_matrix(result)
        for start, stop in tiles(source):
            target[start:stop] = self.change_rows(source[start:stop], start, stop)
        return result

    def change_rows(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The delta at rows start..stop, whose base's values are `rows`; as `change`, a new contiguous matrix."""
        import torch

        if self.changing:
            tile = rows.clone(memory_format=torch.contiguous_format)
            Effects(self.changing).act(tile, start, stop)
            tile -= rows
        else:
            tile = torch.zeros_like(rows, memory_format=torch.contiguous_format)
        Effects((), self.additive).act(tile, start, stop)
        return tile


def effects(weighted: Iterable[tuple[float, SiteTerm]], W: torch.Tensor) -> Effects:
    """The joint effect of (weight, term) pairs on a site with the base's values W, on W's device.

    Replacing terms act first, then affine ones in the order given, as one step whose weight interpolates, then additive
    ones. Terms of a kind that replace or add act at once. Raises NotFoldable for affine terms of several weights: they
    belong to several patches, whose order nobody declared.
    """
    groups: dict[str, list[Part]] = {}
    steps: list[Apply] = []
    weights: set[float] = set()
    for weight, term in weighted:
        spec = terms()[term.term]
        if spec.effect == "affine":
            alone = part(replace(term, scale=1.0), 1.0, str(W.device))
            steps.append(_interpolated(spec.prepare([alone], W), term.scale))
            weights.add(weight)
        else:
            groups.setdefault(term.term, []).append(part(term, weight, str(W.device)))
    if len(weights) > 1:
        raise NotFoldable(
            "several patches each change the base's values here: merge them in an order, sequence(base; a, b)"
        )
    ordered = sorted((terms()[name] for name in groups), key=lambda spec: spec.order)
    applies = [(spec.effect, spec.prepare(groups[spec.name], W)) for spec in ordered]
    changing = [apply for effect, apply in applies if effect == "replace"]
    if steps:
        changing.append(_interpolated(Effects(tuple(steps)).act, weights.pop()))
    return Effects(tuple(changing), tuple(apply for effect, apply in applies if effect == "additive"))


def _interpolated(apply: Apply, weight: float) -> Apply:
    """W + weight · (f(W) - W) of a step f: weight 0 is the base, 1 the step itself, exactly."""
    if weight == 1.0:
        return apply

    def act(tile: torch.Tensor, start: int, stop: int) -> None:
        before = tile.clone()
        apply(tile, start, stop)
        tile.sub_(before).mul_(weight).add_(before)

    return act
