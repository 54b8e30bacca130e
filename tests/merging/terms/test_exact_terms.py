"""Terms that stand for bits: they give them exactly, and say by name what else they are asked for."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.fingerprint import tensor_digest
from adapterhub.merging.ops.tensors import dtype_name, to_bytes
from adapterhub.merging.registry import Part
from adapterhub.merging.terms import terms
from tests.merging.build import random

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(W: torch.Tensor) -> str:
    return tensor_digest(TensorHandle.of_bytes("W", dtype_name(W.dtype), W.shape, to_bytes(W)))


def part(W: torch.Tensor, tuned: torch.Tensor, weight: float = 1.0, **options: Any) -> Part:
    integers = INTEGERS[W.element_size()]
    bits = W.view(integers) ^ tuned.view(integers)
    stored = bits.view(torch.uint16) if W.element_size() == 2 else bits
    return Part({"bits": stored}, weight, {"dtype": dtype_name(W.dtype), "base_digest": digest(W), **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 5), (7,), (3, 2, 4)])
def test_the_tuned_bits_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    W, tuned = random(*shape, seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype) * 1e-3
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tile = W.to(wide).reshape(W.shape[0], -1).clone()
    terms()["xor"].prepare([part(W, tuned)], W)(tile, 0, W.shape[0])
    assert torch.equal(
        tile.to(dtype).view(INTEGERS[W.element_size()]), tuned.view(INTEGERS[W.element_size()]).view(tile.shape)
    )


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=30))
def test_every_finite_half_survives(bits: list[int]) -> None:
    tuned = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    tuned = torch.where(torch.isfinite(tuned), tuned, torch.zeros_like(tuned))
    W = random(len(bits), seed=3, dtype=torch.bfloat16)
    tile = W.float().view(-1, 1).clone()
    terms()["xor"].prepare([part(W, tuned)], W)(tile, 0, len(bits))
    found = tile.view(-1).bfloat16()
    assert torch.equal(found.view(torch.int16), tuned.view(torch.int16))


def test_what_would_not_be_exact_is_refused_by_name() -> None:
    W, tuned = random(4, 3, seed=1), random(4, 3, seed=2)
    prepare = terms()["xor"].prepare
    one = part(W, tuned)
    with pytest.raises(NotFoldable, match=r"weight 1 alone, not 0\.5"):
        prepare([part(W, tuned, 0.5)], W)
    with pytest.raises(NotFoldable, match="two of them"):
        prepare([one, one], W)
    with pytest.raises(NotFoldable, match="for F32 values; the base's are BF16"):
        prepare([one], W.bfloat16())
    with pytest.raises(NotFoldable, match="this one's is sha256:"):
        prepare([one], W + 1e-7)
    with pytest.raises(NotFoldable, match="this one's is sha256:"):
        prepare([one], random(4, 3, seed=9))


def test_a_seed_that_gives_other_numbers_is_refused() -> None:
    W, theta = random(4, 3), random(2)
    options = {"seed": 1, "key": "w", "materialised_sha256": "0" * 64}
    with pytest.raises(NotFoldable, match="w: the seed gives a delta of sha256"):
        terms()["seeded"].prepare([Part({"theta": theta}, 1.0, options)], W)


def test_a_trajectory_of_another_base_is_refused() -> None:
    fields = {"seed": torch.tensor([1]), "g": torch.tensor([0.5]), "lr": torch.tensor([0.1])}
    options = {"key": "w", "materialised_sha256": "0" * 64}
    with pytest.raises(NotFoldable, match="trained on another base, device or version of torch"):
        terms()["trajectory"].prepare([Part(fields, 1.0, options)], random(4, 3))
