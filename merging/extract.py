"""Makes a native patch of what a tuned checkpoint has and its base has not, with the error that each parameter takes.

One parameter is held in memory at a time, in float64; equal inputs give equal bytes. Parameters that are equal are left
out. What a form cannot hold (a bias has no low rank) is kept as a dense delta. Never imports torch.
Source: arXiv:2212.04089 (deltas); arXiv:2106.09685 and Eckart-Young (truncated SVD); arXiv:2402.10193 (BitDelta).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path

import numpy as np

from adapterhub.merging import native
from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, ShapeMismatch, UnknownSite
from adapterhub.merging.fingerprint import ALGORITHM, fingerprint
from adapterhub.merging.registry import FLOATS

Approximation = tuple[native.StoredTerm, Array]
"""A term, and the delta it stands for in float64, of the parameter's shape."""


@dataclass(frozen=True)
class Extracted:
    """One parameter of an extracted patch. error: ‖Δ - what is stored‖ / ‖Δ‖; norm: ‖Δ‖, both Frobenius in float64."""

    site: str
    term: str
    norm: float
    error: float
    size_bytes: int
    rank: int | None = None


def extract(base: Checkpoint, tuned: Checkpoint, form: str, out: Path) -> tuple[list[Extracted], str]:
    """Write the patch in a form of `FORMS`, such as "lora:r=16" or "xor"; its parameters in order, and its digest.

    Raises InvalidParameter for a form that is not known, UnknownSite, ShapeMismatch or InvalidPatch where the two are
    not of one architecture, do not differ or are not finite; no patch is left then.
    """
    make = _form(form)
    changed = list(_changed(base, tuned))
    if not changed:
        raise InvalidPatch(f"{tuned.name}: every tensor is that of {base.name}; there is nothing to extract")
    known = fingerprint(base)
    touched = {name: known.parameters[name] for name in changed}
    rows = []
    with native.PatchWriter(out) as writer:
        for name in changed:
            term, row = _one(base.tensors[name], tuned.tensors[name], known.parameters[name], make)
            writer.add(name, (term,))
            rows.append(row)
        digest = writer.finish(
            base={
                "repo_id": base.name,
                "model_type": base.config.get("model_type"),
                "fingerprint": {"root": known.root, "algo": ALGORITHM, "params": touched},
                "quantization": base.config.get("quantization_config"),
            },
            provenance={"made_by": "extract", "form": form, "tuned": tuned.name},
        )
    return rows, digest


def _changed(base: Checkpoint, tuned: Checkpoint) -> Iterator[str]:
    for name, there in tuned.tensors.items():
        if name not in base.tensors:
            raise UnknownSite(name, base.name)
        here = base.tensors[name]
        if here.shape != there.shape:
            raise ShapeMismatch(name, there.shape, base.name, here.shape)
        if here.dtype == there.dtype and here.read() == there.read():
            continue
        if not {here.dtype, there.dtype} <= FLOATS:
            raise InvalidPatch(
                f"{name}: {here.dtype} and {there.dtype} differ; only floats have a delta: dequantise both"
            )
        yield name
    missing = sorted(base.tensors.keys() - tuned.tensors.keys())
    if missing:
        raise InvalidPatch(f"{tuned.name}: has no {missing[0]}, which {base.name} has; extract from whole checkpoints")


Make = Callable[[Array], Approximation]


def _one(
    here: TensorHandle, there: TensorHandle, digest: str, make: Make | None
) -> tuple[native.StoredTerm, Extracted]:
    delta = as_floats(there).reshape(there.shape) - as_floats(here).reshape(here.shape)
    if not np.isfinite(delta).all():
        raise InvalidPatch(f"{there.name}: holds NaN or infinity; use an earlier checkpoint")
    norm = float(np.linalg.norm(delta))
    if make is None:
        term, error = native.xor(here, there, digest), 0.0
    else:
        term, kept = make(delta)
        error = float(np.linalg.norm(delta - kept)) / norm if norm else 0.0
    size_bytes = sum(array.nbytes for _, array in term.fields.values())
    rank = term.fields["A"][1].shape[0] if "A" in term.fields else None
    return term, Extracted(here.name, term.kind, norm, error, size_bytes, rank)


# ---- forms -----------------------------------------------------------------------------------------------------------


def _dense(delta: Array) -> Approximation:
    stored = delta.astype(np.float32)
    return native.term("dense", delta.shape, delta=stored), stored.astype(np.float64)


def _of_entries(delta: Array) -> Approximation:
    """Every entry that moved, selected by one bit each."""
    stored = delta.astype(np.float32)
    return native.select(delta != 0, stored), stored.astype(np.float64)


def _of_signs(delta: Array) -> Approximation:
    if delta.ndim < 2:  # as in the paper: only matrices are worth one bit
        return _dense(delta)
    mean = float(np.float32(np.abs(delta).mean()))
    return native.signs(delta), np.where(delta >= 0, mean, -mean)


def _densest(density: float) -> Make:
    def make(delta: Array) -> Approximation:
        """The largest entries; of equal ones those that come first."""
        flat = delta.reshape(-1)
        count = max(1, ceil(density * flat.size))
        chosen = np.argsort(-np.abs(flat), kind="stable")[:count]
        kept = np.zeros(flat.size, np.float32)
        kept[chosen] = flat[chosen]
        return native.sparse(kept.reshape(delta.shape)), kept.reshape(delta.shape).astype(np.float64)

    return make


def _of_rank(rank_of: Callable[[Array], int]) -> Make:
    def make(delta: Array) -> Approximation:
        if delta.ndim != 2:
            return _dense(delta)
        U, S, V = np.linalg.svd(delta, full_matrices=False)
        r = min(max(1, rank_of(S)), S.size)
        root = np.sqrt(S[:r])
        A, B = (root[:, None] * V[:r]).astype(np.float32), (U[:, :r] * root).astype(np.float32)
        return native.lowrank(A, B), B.astype(np.float64) @ A.astype(np.float64)

    return make


def _rank_of_energy(energy: float) -> Callable[[Array], int]:
    def rank(S: Array) -> int:
        shares = np.cumsum(S**2)
        return int(np.searchsorted(shares, energy * shares[-1])) + 1

    return rank


def _whole_number(value: float) -> int:
    if not (isfinite(value) and value >= 1 and value == int(value)):
        raise InvalidParameter(f"lora:r={value:g}: r is a whole number from 1")
    return int(value)


def _share(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise InvalidParameter(f"{name}={value:g}: a number above 0 and at most 1 is expected")
    return value


def _lora_of_rank(value: float) -> Make:
    r = _whole_number(value)
    return _of_rank(lambda S: r)


NUMBERED: Mapping[str, Callable[[float], Make]] = {
    "lora:r": _lora_of_rank,
    "lora:energy": lambda value: _of_rank(_rank_of_energy(_share("lora:energy", value))),
    "sparse:density": lambda value: _densest(_share("sparse:density", value)),
}
"""Forms that take a number, as in "lora:r=16": what makes a term of a delta, by it."""

PLAIN: Mapping[str, Make | None] = {"mask": _of_entries, "bitdelta": _of_signs, "dense": _dense, "xor": None}
"""Forms that take none; None stands for the bits themselves."""

FORMS = (*(f"{name}=NUMBER" for name in NUMBERED), *PLAIN)
"""All forms as they are written."""


def _form(form: str) -> Make | None:
    if form in PLAIN:
        return PLAIN[form]
    name, _, number = form.partition("=")
    if name not in NUMBERED:
        raise InvalidParameter(f"form {form!r} is not known; one of {', '.join(FORMS)} is expected")
    try:
        value = float(number)
    except ValueError as error:
        raise InvalidParameter(f"form {form!r}: {number!r} is no number") from error
    return NUMBERED[name](value)
