"""hra: HRA as peft saves it: the inputs of a module mirrored at r planes, one after another.

Keys: `hra_u` (in, r), a convolution's (in·k·k, r): the planes' normals, of any length. With apply_GS they are made
orthogonal first, by Gram-Schmidt from the first on.

Source: arXiv:2405.17484; peft 0.21 `tuners/hra/{config,layer}.py`, get_delta_weight.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, floats, peft_kind


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("r", 8), f"{file}: r")
    if not isinstance(config.get("apply_GS", False), bool):
        raise InvalidPatch(f"{file}: apply_GS is {str(config['apply_GS'])[:80]!r}; true or false is expected")


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape, r = module.fields["u"].shape, adapter.config.get("r", 8)
    if len(shape) != 2 or shape[1] != r:
        yield f"hra_u is {shape}; (in, {r}) is expected, as {CONFIG} says r {r}"
    elif adapter.config.get("apply_GS") and r > shape[0]:
        yield f"hra_u is {shape}: more columns than rows cannot be made orthogonal, as {CONFIG} says apply_GS"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One reflect term."""
    u = module.fields["u"]
    site, options = sites.matrix(module.path, None, u.shape[0])
    if adapter.config.get("apply_GS"):
        u = floats(u.name, u.shape, lambda: _orthogonal(as_floats(module.fields["u"])))
    yield SiteTerm(site, "reflect", {"u": u}, options=options)


def _orthogonal(u: Array) -> Array:
    """Orthonormal columns that span what the first columns span, each of the direction Gram-Schmidt gives it."""
    Q, R = np.linalg.qr(u)
    signs: Array = np.where(np.diag(R) < 0, -1.0, 1.0)
    return Q * signs


SPEC = peft_kind(
    Tuner(
        peft_type="HRA",
        fields={".hra_u": "u"},
        required=(("u",),),
        shown=("r", "apply_GS"),
        effect="affine",
        check=_check,
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="hra",
    title="HRA",
    summary="The inputs of some modules mirrored at a few planes",
    source="arXiv:2405.17484, as peft saves it",
)
