"""A base that stays in memory untouched, and the variants that borrow its model for a while.

A variant owns only the tensors that differ, and shares those that other variants have too. To compute with it, the
model's parameters are pointed at its tensors; to leave it, they are pointed back at the base's own, which nobody ever
wrote to: the base is restored bit for bit. Its run-time patches are on the model for the same time.
Imports torch: only an engine's process loads this.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from adapterhub.hub.errors import UnfitPatch
from adapterhub.hub.serving import contracts
from adapterhub.hub.serving.attaching import Attached
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.mixture import Adapter, Mixture, is_linear, oriented, sparse
from adapterhub.hub.serving.naming import candidates
from adapterhub.hub.serving.packed import PackedLinear
from adapterhub.hub.serving.sharing import Hold, Shelf, sampled
from adapterhub.hub.serving.variants import Beside
from adapterhub.merging.attachments import Attachment


@dataclass(frozen=True)
class Variant:
    """The tensors in which a variant differs from its base, by the model's own names; on the base's device.

    attached: its run-time patches, None without any. loaded: the base as this variant uses it.
    """

    hold: Hold
    loaded: Loaded
    attached: Attached | None = None

    @property
    def vid(self) -> str:
        return self.hold.vid

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self.hold.tensors

    @property
    def added_bytes(self) -> int:
        """Bytes of what no variant held before it; the rest it shares."""
        return self.hold.added_bytes + (self.attached.size_bytes if self.attached else 0)

    @property
    def size_bytes(self) -> int:
        """Bytes of what differs from its base; a tensor under two names counts once."""
        return _size_bytes(self.tensors.values()) + (self.attached.size_bytes if self.attached else 0)


class Base:
    """A resident model. `apply` is for the one thread that computes; the rest may be called from any."""

    def __init__(self, digest: str, loaded: Loaded, shapes: Mapping[str, Sequence[int]]) -> None:
        """shapes: of the tensors in the weight files, by their names there."""
        self.digest = digest
        self.loaded = loaded
        self._ties = _ties(loaded.model)
        _untie(loaded.model)
        self._slots: Mapping[str, Tensor] = loaded.model.state_dict(keep_vars=True)
        self._pristine = {own: slot.detach() for own, slot in self._slots.items()}
        self._modules: Mapping[str, nn.Module] = dict(loaded.model.named_modules())
        self._packed = {
            f"{path}.weight": module for path, module in self._modules.items() if isinstance(module, PackedLinear)
        }
        self._own_names = {
            name: own
            for name, shape in shapes.items()
            if (own := self._own_name(name)) in self._slots and tuple(self._pristine[own].shape) == tuple(shape)
        }
        self._applied: Variant | Mixture | None = None
        self._shelf = Shelf()
        self.mixture = Mixture(loaded.model)
        self._sampled = sampled(self._pristine.values())

    @property
    def is_pristine(self) -> bool:
        """Whether samples of all weights are what was loaded, bit for bit."""
        return sampled(self._pristine.values()) == self._sampled

    @property
    def is_packed(self) -> bool:
        """Whether weights are in memory in fewer bits than the model computes with."""
        return bool(self._packed)

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights; tied ones count once."""
        return _size_bytes(self._pristine.values())

    @property
    def device(self) -> torch.device:
        return self.loaded.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.loaded.model.dtype

    def tensors(self) -> dict[str, Tensor]:
        """The base's own tensors by their names in the weight files; never to be written to."""
        return {name: self._pristine[own] for name, own in self._own_names.items()}

    def variant(
        self,
        vid: str,
        tensors: Mapping[str, Tensor],
        attachments: Sequence[Attachment] = (),
        contract: Mapping[str, Any] = MappingProxyType({}),
    ) -> Variant:
        """A variant from tensors by their names in the weight files, each of the shape that the base has.

        attachments: run-time patches that go on it, the lowest first. contract: how the patches want it used.

        A stored tensor that the model ties to another changes both, unless `tensors` holds the other under its own
        name too. One that is not stored, as a tied head, changes alone: a recipe that names it unties it. Raises
        UnfitPatch for one that the model does not hold under that name and shape and for a contract that is not
        applied here, InvalidRequest as `Attached`.
        """
        placed = {name: self._placed(name, tensor) for name, tensor in tensors.items()}
        named = {self._own_name(name) or "": tensor for name, tensor in placed.items()}
        for name in placed.keys() & self._own_names.keys():
            for tied in self._ties[self._own_names[name]]:
                named.setdefault(tied, placed[name])
        attached = Attached(attachments) if attachments else None
        loaded = contracts.under(self.loaded, contract) if contract else self.loaded
        if attached is not None:
            loaded = replace(loaded, is_patched=True, virtual_tokens=attached.virtual_tokens)
        return Variant(self._shelf.put(vid, named), loaded, attached)

    def forget(self, variant: Variant) -> Mapping[str, int]:
        """To be called once, when a variant is gone: the bytes of it that others hold and now answer for, by vid."""
        return self._shelf.take(variant.hold)

    def adapter(self, vid: str, beside: Beside, contract: Mapping[str, Any] = MappingProxyType({})) -> Adapter | None:
        """A variant that stays beside the weights.

        None where a site of it is no weight of a linear layer, is tied to another, or is an expert's, which reads
        tokens that a router chose: whose they are, nobody can tell.
        """
        paths = {name: self._linear(name) for name in (*beside.factors, *beside.entries)}
        if not all(paths.values()):
            return None
        factors, entries = {}, {}
        for name, pair in beside.factors.items():
            left, right = (one.to(self.device) for one in pair)
            factors[paths[name]] = oriented(self._modules[paths[name]], left, right, self.dtype)
        for name, (positions, values) in beside.entries.items():
            entries[paths[name]] = sparse(self._modules[paths[name]], positions, values, self.device)
        loaded = contracts.under(self.loaded, contract) if contract else self.loaded
        made = Adapter(vid, factors, loaded, entries)
        made.loaded = replace(loaded, before_pass=lambda: self.mixture.use([made]), adapter=made)
        return made

    def _linear(self, name: str) -> str:
        """The path of the linear layer whose own this weight is, empty where there is none."""
        own = self._own_name(name) or ""
        path, _, leaf = own.rpartition(".")
        is_own = leaf == "weight" and len(self._ties.get(own, ())) <= 1 and "experts" not in path.split(".")
        return path if is_own and is_linear(self._modules[path]) else ""

    def apply(self, variant: Variant | Mixture | None) -> None:
        """Make the model compute as `variant`, as the mixture's rows say, or as the base itself for None.

        Raises MergingError for a run-time patch that does not fit; the model is then the base itself.
        """
        if variant is self._applied:
            return
        self._leave()
        if variant is None:
            return
        self._applied = variant
        if isinstance(variant, Mixture):
            return  # it goes on the model with its first rows
        for own, tensor in variant.tensors.items():
            if own in self._packed:
                self._packed[own].weight = nn.Parameter(tensor, requires_grad=False)
            else:
                self._slots[own].data = tensor
        if variant.attached is not None:
            try:
                variant.attached.put(self.loaded.model)
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        if self._applied is None:
            return
        if isinstance(self._applied, Mixture):
            self._applied.take_off()
            self._applied = None
            return
        if self._applied.attached is not None:
            self._applied.attached.take_off()
        for own in self._applied.tensors:
            if own in self._packed:
                self._packed[own].weight = None
            else:
                self._slots[own].data = self._pristine[own]
        self._applied = None

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        own = self._own_name(name)
        layer = self._packed.get(own or "")
        if layer is not None and tensor.shape == (layer.out_features, layer.in_features):
            return tensor.detach().to(device=self.device, dtype=layer.compute_dtype)
        if own is None or layer is not None or self._pristine[own].shape != tensor.shape:
            raise UnfitPatch(
                f"{name}: the model in memory has no parameter of that name and shape {tuple(tensor.shape)}"
            )
        return tensor.detach().to(device=self._pristine[own].device, dtype=self._pristine[own].dtype)

    def _own_name(self, name: str) -> str | None:
        """The model's name of a tensor in the weight files."""
        known = candidates(self.loaded.model, name)
        return next((own for own in known if own in self._slots or own in self._packed), None)


def _ties(model: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """All names of each tensor of the model, by each of its names."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
    return {name: tuple(names[id(tensor)]) for name, tensor in tensors.items()}


def _untie(model: nn.Module) -> None:
    """Give each place of a tied parameter a parameter of its own over the same memory: no bytes are copied."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)


def _size_bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
