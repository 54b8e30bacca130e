"""The modules that LyCORIS adds to kohya's files: LoHa, LoKr, whole deltas and LoCon's cores, as terms.

LoHa: `hada_w1_a` (out, r), `hada_w1_b` (r, in·k·k), `hada_w2_a`, `hada_w2_b`, or with cores `hada_t1`, `hada_t2`. LoKr:
`lokr_w1` or its factors, `lokr_w2` or its, with `lokr_t2` a core. Both scale by alpha / r, and by 1 where nothing is in
factors. `diff` is the delta itself. `lora_mid` (r, r, k, k) stands between a convolution's up and down. Never imports
torch.

Source: LyCORIS 3 `modules/{loha,lokr,full,locon}.py`, `functional/{loha,lokr,general}.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.peft_adapter import floats

_HADA, _KRON = "hada_", "lokr_"
_HADA_FIELDS = {f"{_HADA}{name}": name.replace("_", "") for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
_KRON_FIELDS = {f"{_KRON}{name}": name.replace("_", "") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
MID = "lora_mid.weight"
FIELDS = frozenset({*_HADA_FIELDS, *_KRON_FIELDS, "diff", MID})
"""The last parts of the names of their tensors."""


@dataclass(frozen=True)
class Shaped:
    """What the tensors of one module come to: the term, its delta as a matrix (rows, columns), its rank or None."""

    term: str
    rows: int
    columns: int
    r: int | None


def shaped(found: Mapping[str, TensorHandle]) -> tuple[Shaped, Mapping[str, TensorHandle]]:
    """The term of a module by the last parts of its tensors' names, and its fields. Raises ValueError."""
    shapes = {name: handle.shape for name, handle in found.items()}
    if any(0 in shape or len(shape) < 1 for shape in shapes.values()):
        raise ValueError(f"has an empty tensor: {shapes}")
    if found.keys() == {"diff"}:
        return Shaped("dense", shapes["diff"][0], prod(shapes["diff"][1:]), None), {"delta": found["diff"]}
    for fields, shape_of in ((_HADA_FIELDS, _hadamard), (_KRON_FIELDS, _kron)):
        if found.keys() <= fields.keys():
            return shape_of({fields[name]: shape for name, shape in shapes.items()}), {
                fields[name]: handle for name, handle in found.items()
            }
    raise ValueError(f"has {', '.join(sorted(shapes))}, which are of no one of LoHa, LoKr and a whole delta")


def _hadamard(shapes: Mapping[str, tuple[int, ...]]) -> Shaped:
    missing = {"w1a", "w1b", "w2a", "w2b"} - shapes.keys()
    if missing:
        raise ValueError(f"has of LoHa {', '.join(sorted(shapes))}, and no {', '.join(sorted(missing))}")
    a, b = shapes["w1a"], shapes["w1b"]
    core = shapes.get("t1")
    if (shapes["w2a"], shapes["w2b"]) != (a, b) or len(a) != 2 or len(b) != 2 or shapes.get("t2") != core:
        raise ValueError(f"its two products are of {shapes}; equal shapes are expected")
    r = b[0]
    if (a[1] if core is None else a[0]) != r or (core is not None and (len(core) != 4 or core[:2] != (r, r))):
        raise ValueError(f"hada_w1_a is {a}, hada_w1_b {b} and hada_t1 {core}: their ranks differ")
    return Shaped("hadamard", a[0], b[1], r) if core is None else Shaped("hadamard", a[1], b[1] * prod(core[2:]), r)


def _kron(shapes: Mapping[str, tuple[int, ...]]) -> Shaped:
    (a, b, first), (c, d, second) = (_side(shapes, name) for name in ("w1", "w2"))
    return Shaped("kron", a * c, b * d, first or second)


def _side(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int, int | None]:
    """Rows, columns and rank of one factor of the Kronecker product."""
    whole, a, b = (shapes.get(name + end) for end in ("", "a", "b"))
    core = shapes.get("t2") if name == "w2" else None
    if whole is not None and a is None and b is None and core is None and len(whole) >= 2:
        return whole[0], prod(whole[1:]), None
    if whole is None and a is not None and b is not None and len(a) == len(b) == 2:
        if core is None and a[1] == b[0]:
            return a[0], b[1], b[0]
        if core is not None and len(core) == 4 and core[:2] == (a[0], b[0]):
            return a[1], b[1] * prod(core[2:]), b[0]
    raise ValueError(f"lokr_{name} is {whole}, its factors {a} and {b}, their core {core}; one form is expected")


def with_core(down: TensorHandle, mid: TensorHandle) -> TensorHandle:
    """LoCon's mid · down as one A (r, in, k, k). Raises ValueError."""
    r = down.shape[0]
    if len(mid.shape) != 4 or mid.shape[:2] != (r, r) or len(down.shape) != 4 or set(down.shape[2:]) != {1}:
        raise ValueError(f"lora_mid is {mid.shape} and lora_down {down.shape}; ({r}, {r}, k, k) and (r, in, 1, 1) fit")

    def make() -> Array:
        joined: Array = np.einsum("abkl,bi->aikl", as_floats(mid), as_floats(down)[:, :, 0, 0])
        return joined

    return floats(mid.name, (r, down.shape[1], *mid.shape[2:]), make)
