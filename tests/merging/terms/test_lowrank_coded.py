"""Mixed-precision deltas: what is coded decodes to within half a step, and more bits to less error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging import native, patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.ops.indices import unpack_codes
from adapterhub.merging.site_deltas import site_deltas


@given(bits=st.integers(2, 8), codes=st.lists(st.integers(0, 255), max_size=40))
def test_codes_come_back_as_they_were_packed(bits: int, codes: list[int]) -> None:
    kept = np.array([code % 2**bits for code in codes], np.int64)
    digits = (kept.reshape(-1, 1) >> np.arange(bits)) & 1
    packed = np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little")
    assert unpack_codes(torch.from_numpy(packed), bits, len(kept)).tolist() == kept.tolist()


def written(delta: Any, precision: list[tuple[int, int]], folder: Path, group: int = 128) -> torch.Tensor:
    """The delta that a fold reads from what was stored of it, float64."""
    native.write_patch(folder, sites={"w": native.coded(delta, precision, group=group)}, base={})
    (facts,) = patches.inspect(LocalFolder(folder))
    assert (facts.kind, facts.problems) == ("lowrank_coded", ())
    return site_deltas(patches.read(LocalFolder(folder)))["w"].dense(torch.zeros(delta.shape, dtype=torch.float64))


def test_eight_bits_of_all_directions_are_the_delta_to_within_their_steps(tmp_path: Path) -> None:
    delta = np.random.default_rng(0).normal(size=(24, 16))
    found = written(delta, [(8, 16)], tmp_path / "all", group=8)
    assert float((found - torch.tensor(delta)).norm() / np.linalg.norm(delta)) < 0.01


def test_large_directions_in_more_bits_err_less_than_all_in_few_of_as_many_bytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    u, v = (np.linalg.qr(generator.normal(size=(64, 64)))[0] for _ in range(2))
    delta = u * (0.7 ** np.arange(64)) @ v.T
    mixed, even = (
        float((written(delta, one, tmp_path / str(n)) - torch.tensor(delta)).norm())
        for n, one in enumerate(([(8, 4), (3, 8), (2, 4)], [(2, 32)]))
    )
    assert mixed < even / 2


def test_codes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (good,) = native.coded(np.ones((3, 3)), [(3, 1)])
    short = {**good.fields, "A": ("U8", good.fields["A"][1][:-1])}
    for number, fields in enumerate((short, {**good.fields, "A": ("U8", np.full(2, 255, np.uint8))})):
        term = native.StoredTerm("lowrank_coded", (3, 3), fields, options={"bits": 3})
        with pytest.raises(InvalidPatch, match=r"bytes hold its codes of 3 bits|bits after its last code"):
            native.write_patch(tmp_path / str(number), sites={"w": term}, base={})
