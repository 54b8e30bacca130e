"""Random numbers that belong to a seed, a patch and a tensor: equal ones in any order, on any device and thread.

A counter-based generator is keyed by sha256 over the three, so nothing drawn elsewhere moves what is drawn here.
The generator is Philox4x64-10, whose stream of raw words numpy promises to keep. Source: Salmon et al., SC 2011.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.ops.sparsify import keep_ranked, rescaled

if TYPE_CHECKING:
    import torch

WORD = 1 << 32


def words(seed: int, digest: str, name: str, count: int) -> torch.Tensor:
    """`count` equally likely whole numbers from 0 to 2^32 - 1, (count,) int64, on the CPU."""
    import torch

    key = hashlib.sha256(f"{seed}\0{digest}\0{name}".encode()).digest()[:16]
    philox = np.random.Philox(key=np.frombuffer(key, "<u8").copy())
    raw = philox.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
    return torch.from_numpy(raw.astype(np.int64))


def chosen(probability: torch.Tensor | float, seed: int, digest: str, name: str, like: torch.Tensor) -> torch.Tensor:
    """Which entries of `like` are drawn: true with their probability, a bool tensor of its shape and device.

    probability: in [0, 1], one number or a tensor of that shape; known to 2^-32.
    """
    drawn = words(seed, digest, name, like.numel()).view(like.shape).to(like.device)
    if isinstance(probability, float):
        return drawn < round(probability * WORD)
    return drawn < (probability.double() * WORD).round()


def keep_random(delta: torch.Tensor, density: float, rescale: str, seed: int, digest: str, name: str) -> torch.Tensor:
    """The tensor with each entry kept with probability `density` and brought back to size; a new tensor.

    density in (0, 1]: 1 keeps all. rescale: one of `sparsify.RESCALES`. Source: arXiv:2311.03099 sec. 3.
    """
    if density >= 1:
        return delta.clone()
    kept = delta * chosen(density, seed, digest, name, delta)
    return rescaled(kept, delta, rescale, 1 / density)


def keep_likely(
    delta: torch.Tensor, density: float, epsilon: float, rescale: str, seed: int, digest: str, name: str
) -> torch.Tensor:
    """The tensor with entries kept by `sparsify.keep_ranked`'s probabilities and brought back to size; a new tensor.

    density, epsilon: density 1 keeps all, and otherwise density ± epsilon lies in (0, 1). For "inverse" each entry is
    divided by its own probability. Source: arXiv:2406.11617 sec. 3.
    """
    if density >= 1:
        return delta.clone()
    likely = keep_ranked(delta, density, epsilon)
    kept = delta * chosen(likely, seed, digest, name, delta)
    return rescaled(kept, delta, rescale, (1 / likely).to(delta.dtype))


def check_probabilities(method: str, density: float, epsilon: float) -> None:
    """Raises InvalidParameter unless density is 1, or density - epsilon and density + epsilon lie between 0 and 1."""
    low, high = density - epsilon, density + epsilon
    if density < 1 and (low <= 0 or high >= 1):
        raise InvalidParameter(
            f"{method}: density {density:g} ± epsilon {epsilon:g} is {low:g} to {high:g}, which are no probabilities; "
            "choose a smaller epsilon"
        )
