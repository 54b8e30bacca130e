"""Tensors that variants of one base have in common, held once: `base + a` and `base + a + b` differ where b reaches.

Imports torch: only an engine's process loads this.
"""

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SAMPLED = 64
"""Elements of each tensor by which `sampled` knows it."""


@dataclass(eq=False)
class Hold:
    """What one variant has on the shelf, by its name. added_bytes: of what nobody held before it."""

    vid: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    added_bytes: int = 0


@dataclass
class _Shared:
    """A tensor and who holds it, of whom the first answers for its bytes."""

    tensor: Tensor
    holders: list[Hold]


class Shelf:
    """The tensors of all variants of a base. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: defaultdict[tuple[str, str], list[_Shared]] = defaultdict(list)

    def put(self, vid: str, tensors: Mapping[str, Tensor]) -> Hold:
        """The tensors of a variant, equal ones of others in the place of its own; until `take`.

        Equal is bit for bit. A tensor under two names counts once.
        """
        hold, added = Hold(vid), {}
        for name, tensor in tensors.items():
            key = name, sampled([tensor])
            with self._lock:
                found = next((one for one in self._found[key] if _is_same(one.tensor, tensor)), None)
                if found is None:
                    self._found[key].append(found := _Shared(tensor, []))
                    added[tensor.data_ptr()] = tensor.nbytes
                found.holders.append(hold)
            hold.tensors[name] = found.tensor
        hold.added_bytes = sum(added.values())
        return hold

    def take(self, hold: Hold) -> Mapping[str, int]:
        """Give a variant's tensors back; the bytes for which others answer from now on, by their vid."""
        left: Counter[str] = Counter()
        counted: set[int] = set()
        for name, tensor in hold.tensors.items():
            key = name, sampled([tensor])
            with self._lock:
                one = next(one for one in self._found[key] if one.tensor is tensor)
                was_first = one.holders[0] is hold
                one.holders.remove(hold)
                if not one.holders:
                    self._found[key].remove(one)
                    if not self._found[key]:
                        del self._found[key]
                elif was_first and tensor.data_ptr() not in counted:
                    counted.add(tensor.data_ptr())
                    left[one.holders[0].vid] += tensor.nbytes
        return left


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit: 0 and -0 differ, and a NaN is itself."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def sampled(tensors: Iterable[Tensor]) -> str:
    """sha256 over elements of each tensor, evenly spaced."""
    flat = (tensor.detach().reshape(-1) for tensor in tensors if tensor.numel())
    samples = [one[:: max(1, one.numel() // SAMPLED)].contiguous().view(torch.uint8) for one in flat]
    return hashlib.sha256(torch.cat(samples).cpu().numpy().tobytes() if samples else b"").hexdigest()
