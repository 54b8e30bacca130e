"""What warns and what does not: each rule with a patch that has the fault and one that has not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.merging import doubts
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.patch import Facts, SiteTerm
from tests.merging.build import random, site_term

LORA = Facts("lora", "made by a test", dtypes={"F32": 8}, targets=("q_proj", "mlp.down_proj"))


def told(*terms: SiteTerm) -> str:
    return "\n".join(doubts.of_values(terms))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtypes": {"F16": 3, "F32": 5}}, "3 in F16 and 5 in F32"),
        ({"detail": {"target_modules": ["q_proj", "v_proj", "down_proj"]}}, "names v_proj, and no tensor"),
        ({"kind": "sparse", "detail": {"density": 0.6}}, "60% of the entries"),
    ],
)
def test_headers_warn_of_what_looks_wrong(change: dict[str, object], sentence: str) -> None:
    [warning] = doubts.of_headers(replace(LORA, **change))  # type: ignore[arg-type]
    assert sentence in warning


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtypes": {"I32": 3, "F32": 5}},
        {"kind": "model", "dtypes": {"F16": 3, "F32": 5}},
        {"detail": {"target_modules": ["model.layers.0.self_attn.q_proj", "down_proj"]}},
        {"detail": {"target_modules": "all-linear"}},
        {"kind": "sparse", "detail": {"density": 0.5}},
    ],
)
def test_headers_of_a_sound_patch_warn_of_nothing(change: dict[str, object]) -> None:
    assert list(doubts.of_headers(replace(LORA, **change))) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_untrained_b_is_told_with_how_many_there_are(dtype: torch.dtype) -> None:
    A, zero = random(2, 6, dtype=dtype), torch.zeros(8, 2, dtype=dtype)
    trained = site_term("a", "lowrank", A=A, B=random(8, 2, dtype=dtype))
    untrained = [site_term(name, "lowrank", A=A, B=-zero) for name in "bc"]
    assert told(trained) == ""
    assert told(trained, *untrained).startswith("b and 1 more of 3 sites: B is all zeros")


def test_zeros_among_sparse_values_are_told() -> None:
    idx = torch.tensor([1, 4])
    assert told(site_term("a", "sparse", idx=idx, val=torch.tensor([1.0, -2.0]))) == ""
    assert "zeros are among" in told(site_term("a", "sparse", idx=idx, val=torch.tensor([1.0, -0.0])))


def test_a_negative_magnitude_is_told() -> None:
    fields = {"A": random(2, 6), "B": random(8, 2)}
    assert told(site_term("a", "dora", mag=torch.rand(8), **fields)) == ""
    assert "magnitude is negative" in told(site_term("a", "dora", mag=torch.linspace(-0.1, 1, 8), **fields))


def test_what_stretches_is_no_rotation() -> None:
    R = torch.linalg.qr(random(3, 4, 4)).Q
    assert told(site_term("a", "rotate", R=R)) == ""
    assert "no rotation" in told(site_term("a", "rotate", R=R * 1.001))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("subnormal", "is_told"), [(9, False), (10, True)])
def test_a_flood_of_subnormal_numbers_is_told(
    dtype: torch.dtype, subnormal: int, is_told: bool, tmp_path: Path
) -> None:
    """Of 100 entries 5 are zero: from a tenth of the other 95 on it is a flood."""
    delta = torch.ones(100, dtype=dtype)
    delta[-5:] = 0
    delta[:subnormal] = -torch.finfo(dtype).tiny / 4
    save_file({"w": delta, "n": torch.arange(3)}, tmp_path / "a.safetensors")
    found = list(doubts.of_files(LocalFolder(tmp_path), ["a.json", "a.safetensors"]))
    assert ["tensor w is subnormal" in one for one in found] == [True] * is_told
