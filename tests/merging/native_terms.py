"""Native terms on any matrix, each with the formula of what it makes of that matrix, in float64."""

from collections.abc import Callable
from math import gcd
from typing import Any

import numpy as np
import torch

from adapterhub.merging import native
from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.fingerprint import tensor_digest
from adapterhub.merging.ops.philox import Stream
from adapterhub.merging.ops.tensors import dtype_name, to_bytes
from tests.merging.build import random

Made = tuple[native.StoredTerm, torch.Tensor]
"""A term and the float64 matrix that W becomes."""

KEY = "the.trained.name"
BANKS = {"a": (2, 256), "b": (256, 2)}
"""Shapes of the banks `lowrank_shared` draws on, at least as large as any matrix of the tests."""


def small(*shape: int, seed: int) -> torch.Tensor:
    return random(*shape, seed=seed) * 0.1


def bank(name: str) -> torch.Tensor:
    return small(*BANKS[name], seed=len(name) + 90)


def lowrank(W: torch.Tensor, seed: int) -> Made:
    A, B = small(2, W.shape[1], seed=seed), small(W.shape[0], 2, seed=seed + 1)
    return native.lowrank(A.numpy(), B.numpy(), scale=0.5), W.double() + 0.5 * B.double() @ A.double()


def lowrank_shared(W: torch.Tensor, seed: int) -> Made:
    d, b = small(2, seed=seed), random(W.shape[0], seed=seed + 1)
    A, B = bank("a")[:, : W.shape[1]].double(), bank("b")[: W.shape[0]].double()
    fields: dict[str, Any] = {"d": d.numpy(), "b": b.numpy()}
    term = native.term("lowrank", W.shape, shared={"A": "factors.A", "B": "factors.B"}, **fields)
    return term, W.double() + torch.diag(b.double()) @ B @ torch.diag(d.double()) @ A


def lowrank_coded(W: torch.Tensor, seed: int) -> Made:
    out, fan_in = W.shape
    generator = np.random.default_rng(seed)
    fields: dict[str, Any] = {}
    factors = []
    for name, size in (("A", fan_in), ("B", out)):
        codes, scales = generator.integers(0, 8, (2, size)), (generator.random((2, 1)) * 0.05).astype(np.float32)
        digits = (codes.reshape(-1, 1) >> np.arange(3)) & 1
        fields[name] = np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little")
        fields[f"{name}_scale"] = scales
        factors.append(torch.tensor((codes - 4) * scales.astype(np.float64)))
    A, B = factors
    return native.term("lowrank_coded", W.shape, options={"bits": 3}, **fields), W.double() + B.T @ A


def dense(W: torch.Tensor, seed: int) -> Made:
    delta = small(*W.shape, seed=seed)
    return native.term("dense", W.shape, delta=delta.numpy()), W.double() + delta.double()


def sparse(W: torch.Tensor, seed: int) -> Made:
    delta = small(*W.shape, seed=seed) * (random(*W.shape, seed=seed + 1) > 1)
    return native.sparse(delta.numpy()), W.double() + delta.double()


def mask(W: torch.Tensor, seed: int) -> Made:
    selected, delta = random(*W.shape, seed=seed) > 0, small(*W.shape, seed=seed + 1)
    return native.select(selected.numpy(), delta.numpy()), W.double() + selected.double() * delta.double()


def prune(W: torch.Tensor, seed: int) -> Made:
    kept = random(*W.shape, seed=seed) > 0
    return native.prune(kept.numpy()), W.double() * kept.double()


def scale(W: torch.Tensor, seed: int) -> Made:
    row, col = random(W.shape[0], seed=seed), random(W.shape[1], seed=seed + 1)
    term = native.term("scale", W.shape, row=row.numpy(), col=col.numpy())
    return term, W.double() * row.double()[:, None] * col.double()


def replace(W: torch.Tensor, seed: int) -> Made:
    value = small(*W.shape, seed=seed)
    return native.term("replace", W.shape, value=value.numpy()), value.double()


def replace_rows(W: torch.Tensor, seed: int) -> Made:
    idx = np.unique([0, len(W) // 2, len(W) - 1])
    value = small(len(idx), W.shape[1], seed=seed)
    expected = W.double().clone()
    expected[torch.tensor(idx)] = value.double()
    return native.term("replace_rows", W.shape, idx=idx.astype(np.int64), value=value.numpy()), expected


def dora(W: torch.Tensor, seed: int) -> Made:
    A, B = small(2, W.shape[1], seed=seed), small(W.shape[0], 2, seed=seed + 1)
    mag = random(W.shape[0], seed=seed + 2).abs()
    fields: dict[str, Any] = {"A": A.numpy(), "B": B.numpy(), "mag": mag.numpy()}
    V = W.double() + 0.5 * B.double() @ A.double()
    expected = V * (mag.double() / V.norm(dim=1))[:, None]
    return native.term("dora", W.shape, options={"scaling": 0.5}, **fields), expected


def hadamard(W: torch.Tensor, seed: int) -> Made:
    (out, fan_in), names = W.shape, ("w1a", "w1b", "w2a", "w2b")
    shapes = ((out, 2), (2, fan_in), (out, 3), (3, fan_in))
    fields = {name: small(*shape, seed=seed + n) for n, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    w1a, w1b, w2a, w2b = (fields[name].double() for name in names)
    arrays: dict[str, Any] = {name: one.numpy() for name, one in fields.items()}
    term = native.term("hadamard", W.shape, **arrays)
    return term, W.double() + (w1a @ w1b) * (w2a @ w2b)


def kron(W: torch.Tensor, seed: int) -> Made:
    n = gcd(*W.shape)
    w1, w2 = small(n, n, seed=seed), small(W.shape[0] // n, W.shape[1] // n, seed=seed + 1)
    return native.term("kron", W.shape, w1=w1.numpy(), w2=w2.numpy()), W.double() + torch.kron(w1.double(), w2.double())


def circulant(W: torch.Tensor, seed: int) -> Made:
    b = gcd(*W.shape)
    kernel = small(W.shape[0] // b, W.shape[1] // b, b, seed=seed)
    shifted = torch.stack([kernel.double().roll(s, 2) for s in range(b)], 1)  # (m, s, n, b)
    return native.term("circulant", W.shape, kernel=kernel.numpy()), W.double() + shifted.reshape(W.shape)


def rotate(W: torch.Tensor, seed: int) -> Made:
    b = gcd(W.shape[1], 4)
    R = random(W.shape[1] // b, b, b, seed=seed)
    whole: torch.Tensor = torch.block_diag(*R.double())  # type: ignore[no-untyped-call]
    return native.term("rotate", W.shape, R=R.numpy()), W.double() @ whole.T


def reflect(W: torch.Tensor, seed: int) -> Made:
    u = random(W.shape[1], 2, seed=seed)
    expected = W.double()
    for normal in u.double().T:
        expected = expected @ (torch.eye(len(normal)).double() - 2 * torch.outer(normal, normal) / normal.dot(normal))
    return native.term("reflect", W.shape, u=u.numpy()), expected


def block_affine(W: torch.Tensor, seed: int) -> Made:
    b = gcd(*W.shape)
    B = small(W.shape[0] // b, b, b, seed=seed)
    blocks = W.double().reshape(len(B), b, -1, b).transpose(1, 2)  # (m, n, b, b)
    changed = blocks + blocks @ B.double()[:, None] + B.double()[:, None]
    return native.term("block_affine", W.shape, B=B.numpy()), changed.transpose(1, 2).reshape(W.shape)


def signs(W: torch.Tensor, seed: int) -> Made:
    """Two levels with a mean for each row."""
    delta = small(*W.shape, seed=seed)
    rest, total = delta.double(), torch.zeros(W.shape).double()
    for _ in range(2):
        mean = rest.abs().mean(1, keepdim=True).float().double()
        level = torch.where(rest >= 0, mean, -mean)
        rest, total = rest - level, total + level
    return native.signs(delta.numpy(), rows=True, levels=2), W.double() + total


def xor(W: torch.Tensor, seed: int) -> Made:
    tuned = (W.double() + small(*W.shape, seed=seed).double()).to(W.dtype)
    here, there = (TensorHandle.of_bytes("w", dtype_name(W.dtype), tuple(W.shape), to_bytes(one)) for one in (W, tuned))
    return native.xor(here, there, tensor_digest(here)), tuned.double()


def seeded(W: torch.Tensor, seed: int) -> Made:
    """Fastfood of 5 coefficients, written with the matrices of the paper."""
    theta, p = small(5, seed=seed), 8
    H = torch.ones(1, 1).double()
    while len(H) < p:
        H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), H)
    stream, blocks = Stream.of(seed, KEY), []
    for block in range((W.numel() + p - 1) // p):
        B, G = (torch.diag(torch.tensor(stream.rademacher(0, p, 3 * block + n))).double() for n in (0, 2))
        permuted = torch.eye(p).double()[torch.tensor(stream.permutation(p, 3 * block + 1))]
        blocks.append((H @ G @ permuted @ H @ B / p)[:, :5] @ theta.double())
    options = {"seed": seed, "key": KEY, "projection": "fastfood"}
    expected = W.double() + torch.cat(blocks)[: W.numel()].view(W.shape)
    return native.term("seeded", W.shape, options=options, theta=theta.numpy()), expected


def trajectory(W: torch.Tensor, seed: int) -> Made:
    """Two steps of MeZO with weight decay."""
    seeds, g, lr = np.array([seed, seed + 5]), np.array([0.5, -0.25], np.float32), np.array([0.02, 0.01], np.float32)
    expected = W.double()
    for step in range(2):
        z = torch.tensor(Stream.of(int(seeds[step]), KEY).rademacher(0, W.numel())).double().view(W.shape)
        expected = expected - float(lr[step]) * (float(g[step]) * z + 0.1 * expected)
    options = {"key": KEY, "decay": 0.1}
    return native.term("trajectory", W.shape, options=options, seed=seeds.astype(np.int64), g=g, lr=lr), expected


MAKERS: dict[str, Callable[[torch.Tensor, int], Made]] = {
    make.__name__: make
    for make in (
        *(
            lowrank,
            lowrank_shared,
            lowrank_coded,
            dense,
            sparse,
            mask,
            prune,
            scale,
            replace,
            replace_rows,
            dora,
            hadamard,
            kron,
        ),
        *(circulant, rotate, reflect, block_affine, signs, xor, seeded, trajectory),
    )
}
"""By the kind of a patch that holds nothing else."""

SHARED = {"factors": {"A": bank("a").numpy(), "B": bank("b").numpy()}}
