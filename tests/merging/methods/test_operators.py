"""Methods of one patch, and sums with signs: reset, deintrude, negation and analogy, on whole models and by formula."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import Result, run
from adapterhub.merging.methods.deintrude import Parameters, deintrude
from adapterhub.merging.methods.reset import Parameters as Reset
from adapterhub.merging.methods.reset import acts_on
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.registry import MergeSite
from tests.merging import tiny
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.methods.tuned import merged as tuned_merge
from tests.merging.methods.tuned import on_every_architecture, state

State = dict[str, torch.Tensor]
LORA = ("q_proj", "v_proj", "o_proj", "down_proj", "up_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """A base, three models tuned from it and a LoRA."""
    root = tmp_path_factory.mktemp("operators")
    made = {"base": ("model", tiny.saved(tiny.llama(), root / "base"))}
    for number, name in enumerate("abc"):
        model: Any = tiny.llama()
        torch.manual_seed(number + 1)
        for one in model.parameters():
            one.data += 0.1 * torch.randn_like(one)
        made[name] = ("model", tiny.saved(model, root / name))
    tiny.adapter(tiny.llama(), root / "lora", target_modules=list(LORA))
    return made | {"lora": ("lora", root / "lora")}


def merged(text: str, folders: dict[str, tuple[str, Path]], out: Path) -> tuple[State, Result]:
    recipe = parse(text)
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(folders[ref.name][1]), kind=folders[ref.name][0])
        for ref in recipe.references()
    }
    result = run(plan(recipe, inputs, memory_bytes=1 << 30), out)
    return load_file(out / "model.safetensors"), result


def stored(folders: dict[str, tuple[str, Path]], name: str) -> State:
    return load_file(folders[name][1] / "model.safetensors")


# ---- reset -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["category", "layer", "tensor"])
def test_half_goes_back_bit_for_bit_and_both_halves_are_the_patch(
    by: str, folders: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    base, whole = stored(folders, "base"), merged("base + lora", folders, tmp_path / "whole")[0]
    first, _ = merged(f"reset(base; lora, by={by}, seed=3)", folders, tmp_path / "first")
    other, _ = merged(f"reset(base; lora, by={by}, seed=3, half=other)", folders, tmp_path / "other")
    touched = {name for name in base if not torch.equal(base[name], whole[name])}
    kept = {name for name in base if not torch.equal(base[name], first[name])}
    assert len(touched) == 10
    assert len(kept) == 5
    assert {name for name in base if not torch.equal(base[name], other[name])} == touched - kept
    expected = {name: whole[name] if name in kept else base[name] for name in base}
    error = roundings(first, expected, torch.float32)
    record("reset", "llama", "float32", "the patch, or the base", error, "method")
    assert error <= 1.0
    assert roundings({**first, **{name: other[name] for name in touched - kept}}, whole, torch.float32) <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@on_every_architecture
def test_every_tensor_of_a_model_is_the_patch_s_or_the_base_s(
    name: str, dtype: str, models: Callable[[str, str], Mapping[str, Path]], tmp_path: Path
) -> None:
    given = models(name, dtype)
    base, patch = state(given["base"]), state(given["a"])
    found = tuned_merge("reset(base; a, seed=2)", given, tmp_path / "out")
    gone = {key for key in base if torch.equal(found[key], base[key])}
    assert len(base) / 3 < len(gone) < 2 * len(base) / 3
    error = roundings(found, {key: base[key] if key in gone else patch[key] for key in base}, DTYPES[dtype])
    record("reset", name, dtype, "the patch, or the base", error, "method")
    assert error <= 1.0


def test_every_category_of_every_layer_is_halved() -> None:
    names = [f"model.layers.{layer}.self_attn.{one}_proj.weight" for layer in range(12) for one in "qkvo"]
    names += [f"model.layers.{layer}.mlp.{one}.weight" for layer in range(12) for one in ("up", "down")]
    kept = acts_on(names, Reset(seed=5))
    for layer in range(12):
        assert sum(f"layers.{layer}.self_attn" in name for name in kept) == 2
        assert sum(f"layers.{layer}.mlp" in name for name in kept) == 1
    assert kept == acts_on(names[::-1], Reset(seed=5))
    assert kept != acts_on(names, Reset(seed=6))


def test_layers_stay_or_go_as_a_whole() -> None:
    names = [f"h.{layer}.{one}.weight" for layer in range(6) for one in ("attn", "mlp")] + ["wte.weight"]
    kept = acts_on(names, Reset(by="layer"))
    assert "wte.weight" in kept
    assert len(kept) == 7
    assert all((f"h.{layer}.attn.weight" in kept) == (f"h.{layer}.mlp.weight" in kept) for layer in range(6))


# ---- deintrude -------------------------------------------------------------------------------------------------------


def test_intruders_are_the_paper_s_and_are_scaled_by_what_was_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 9, generator=generator, dtype=torch.float64)
    left, right = (torch.randn(size, 1, generator=generator, dtype=torch.float64) for size in (20, 9))
    delta = 8 * left @ right.T / (left.norm() * right.norm())
    site = MergeSite("w", base, ("a",))
    found = deintrude([delta], [1.0], Parameters(eps=0.6, scale=0.25, top=5), site).numpy()
    known, _, _ = np.linalg.svd(base.numpy(), full_matrices=False)
    u, s, vh = np.linalg.svd((base + delta).numpy(), full_matrices=False)
    strange = [j for j in range(5) if max(abs(u[:, j] @ known[:, i]) for i in range(9)) < 0.6]
    removed = sum((0.75 * s[j] * np.outer(u[:, j], vh[j]) for j in strange), np.zeros((20, 9)))
    assert 0 < len(strange) < 5
    np.testing.assert_allclose(found, delta.numpy() - removed, atol=1e-12)
    assert site.told == {"intruders": len(strange), "removed_norm": pytest.approx(np.linalg.norm(removed))}


def test_a_patch_along_the_base_s_own_directions_has_no_intruder() -> None:
    base = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    site = MergeSite("w", base, ("a",))
    assert torch.equal(deintrude([base * 0.5], [1.0], Parameters(), site), base * 0.5)
    assert site.told == {"intruders": 0.0, "removed_norm": 0.0}


def test_the_report_says_what_it_cost(folders: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    _, result = merged("deintrude(base; 4*lora, eps=0.9)", folders, tmp_path / "out")
    told = result.report["tensors"]["model.layers.0.self_attn.q_proj.weight"]
    assert told["intruders"] >= 1
    assert told["removed_norm"] > 0


# ---- sums with signs -------------------------------------------------------------------------------------------------


def test_a_negated_patch_takes_away_what_it_added(folders: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    base = stored(folders, "base")
    away, _ = merged("base - 0.5*a", folders, tmp_path / "away")
    added, _ = merged("base + 0.5*a", folders, tmp_path / "added")
    for name, one in base.items():
        torch.testing.assert_close(away[name] + added[name], 2 * one, rtol=0, atol=1e-6)


def test_an_analogy_is_the_sum_of_its_differences(folders: dict[str, tuple[str, Path]], tmp_path: Path) -> None:
    """c + (a - b): what makes a of b, done to c. Each model counts as its difference from the base."""
    a, b, c = (stored(folders, name) for name in "abc")
    found, _ = merged("base + c + a - b", folders, tmp_path / "out")
    for name, one in found.items():
        torch.testing.assert_close(one, c[name] + a[name] - b[name], rtol=0, atol=1e-6)
    turned, _ = merged("base + a - b + c", folders, tmp_path / "turned")
    assert all(torch.equal(found[name], turned[name]) for name in found)
