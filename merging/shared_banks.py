"""The two random matrices that all modules of a VeRA or PVeRA adapter share, stored in its file or drawn from a seed.

A module takes the first columns of A and the first rows of B. Where they are not stored they are drawn as large as the
largest module needs, so their numbers depend on all shapes of the base at once. Never imports torch.
Source: peft 0.21 `tuners/vera/model.py` and `tuners/pvera/model.py`, _init_vera_A_vera_B and _kaiming_init.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.encodings import Array, corner
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import whole
from adapterhub.merging.peft_adapter import BANK_PREFIX, Adapter, Module, Sites, floats, reshaped
from adapterhub.merging.torch_random import TorchGenerator


def check_banks(config: Mapping[str, Any], file: str) -> None:
    """Raises InvalidPatch for a rank or seed out of range."""
    whole(config.get("r", 256), f"{file}: r")
    whole(config.get("projection_prng_key", 0), f"{file}: projection_prng_key", least=-(2**63), most=2**64 - 1)


@dataclass(frozen=True)
class Banks:
    """How one tuner names its banks. name: "vera" or "pvera". halves: how many times r rows A and lambda_d have."""

    name: str
    halves: int = 1

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.name}_A", f"{self.name}_B"

    def contradictions(self, adapter: Adapter, module: Module) -> Iterator[str]:
        """What does not fit between one module, the banks and the configuration."""
        r = adapter.config.get("r", 256)
        b, d = module.fields["b"], module.fields["d"]
        found = [adapter.banks.get(name) for name in self.names]
        A, B = (None if one is None else one.shape for one in found)
        if len(b.shape) != 1 or d.shape != (self.halves * r,):
            expected = f"(out,) and {(self.halves * r,)} are expected"
            yield f"{self.name}_lambda_b is {b.shape} and {self.name}_lambda_d {d.shape}; {expected}"
        elif adapter.config.get("save_projection", True) and None in found:
            yield f"there is no {BANK_PREFIX}{self.names[found.index(None)]}, and save_projection says that it is there"
        elif A is not None and (len(A) != 2 or A[0] != self.halves * r):
            yield f"{self.names[0]} is {A}; {(self.halves * r, 'in')} is expected"
        elif B is not None and (len(B) != 2 or B[1] != r or B[0] < b.numel):
            yield f"{self.names[1]} is {B}; at least {(b.numel, r)} is expected"

    def terms(self, adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
        """One lowrank term: diag(b)·B·diag(d)·A with the module's part of the banks, the mean's half of d and A."""
        r = adapter.config.get("r", 256)
        b, d = module.fields["b"], module.fields["d"]
        A, B = _banks(adapter, sites, self)
        inputs = sites.in_features(module.path, b.numel) or A.shape[1]
        site, options = sites.weight(module.path, (b.numel, inputs))
        fields = {"A": corner(A, (r, inputs)), "B": corner(B, (b.numel, r)), "d": _first(d, r), "b": b}
        yield SiteTerm(site, "lowrank", fields, options=options)


def _first(handle: TensorHandle, count: int) -> TensorHandle:
    """The first numbers of a vector."""
    if handle.numel == count:
        return handle
    row = reshaped(handle, (handle.numel // count, count))
    return replace(corner(row, (1, count)), shape=(count,))


def _banks(adapter: Adapter, sites: Sites, banks: Banks) -> tuple[TensorHandle, TensorHandle]:
    stored = [adapter.banks.get(name) for name in banks.names]
    if stored[0] is not None and stored[1] is not None:
        return stored[0], stored[1]
    drawn: _Drawn = sites.once("banks", lambda: _drawn(adapter, sites, banks))
    return (
        floats(banks.names[0], (drawn.rows, drawn.inputs), lambda: drawn.matrices[0]),
        floats(banks.names[1], (drawn.outputs, drawn.r), lambda: drawn.matrices[1]),
    )


@dataclass(frozen=True)
class _Drawn:
    """Banks that are drawn when first read, and once for all modules of a reading."""

    seed: int
    r: int
    rows: int
    outputs: int
    inputs: int

    @cached_property
    def matrices(self) -> tuple[Array, Array]:
        generator = TorchGenerator(self.seed)
        bounds = [math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(fan)) for fan in (self.inputs, self.r)]  # Kaiming's
        return (
            generator.uniform((self.rows, self.inputs), -bounds[0], bounds[0]),
            generator.uniform((self.outputs, self.r), -bounds[1], bounds[1]),
        )


def _drawn(adapter: Adapter, sites: Sites, banks: Banks) -> _Drawn:
    if sites.base is None:
        raise NotFoldable(
            f"{adapter.file}: holds no {banks.names[0]}; it is drawn as large as the base's largest module, "
            "so read the adapter with its base, or save it with save_projection"
        )
    outputs = {path: one.fields["b"].numel for path, one in adapter.modules.items() if "b" in one.fields}
    inputs = [sites.in_features(path, out) for path, out in outputs.items()]
    r = adapter.config.get("r", 256)
    largest = max(one for one in inputs if one is not None)
    seed = adapter.config.get("projection_prng_key", 0)
    return _Drawn(seed, r, banks.halves * r, max(outputs.values()), largest)
