"""Handles, terms, patches and checkpoints made of tensors in memory."""

from collections.abc import Mapping

import torch

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.ops.tensors import dtype_name, to_bytes
from adapterhub.merging.patch import Facts, Patch, SiteTerm

DIGEST = "sha256:" + "0" * 64


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def handle(tensor: torch.Tensor, name: str = "w") -> TensorHandle:
    return TensorHandle.of_bytes(name, dtype_name(tensor.dtype), tensor.shape, to_bytes(tensor))


def checkpoint(name: str = "base", /, **tensors: torch.Tensor) -> Checkpoint:
    """A checkpoint in memory; double underscores in names stand for dots."""
    named = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    return Checkpoint({key: handle(tensor, key) for key, tensor in sorted(named.items())}, name=name)


def site_term(site: str, kind: str, scale: float = 1.0, /, **fields: torch.Tensor) -> SiteTerm:
    options: Mapping[str, object] = {"index": "flat"} if kind == "sparse" else {}
    return SiteTerm(site, kind, {name: handle(tensor, name) for name, tensor in fields.items()}, scale, options)


def patch(*terms: SiteTerm, kind: str = "lora") -> Patch:
    return Patch(Facts(kind, "made by a test"), DIGEST, terms)
