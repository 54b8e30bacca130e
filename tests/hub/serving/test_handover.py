"""Recipes as files for another engine: what is written, what is refused, and what stays in the folder."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.serving import handover
from adapterhub.hub.serving.materials import FACTS, Material, Materials, Order
from adapterhub.hub.serving.protocol import Source, VariantSpec
from adapterhub.hub.settings import Settings
from tests.hub.serving import models


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    models.llama(root / "base")
    models.lora(root / "base", root / "one", seed=1)
    models.lora(root / "base", root / "two", seed=2, targets=("o_proj", "q_proj"), r=3)
    return root


@pytest.fixture
def order(stored: Path, tmp_path: Path) -> Callable[..., Order]:
    def make(expression: str, **given: Any) -> Order:
        named = [name for name in ("one", "two", "patterned", "templated") if f"lab/{name}" in expression]
        patches = [models.source(f"lab/{name}", stored / name, "lora") for name in named]
        spec = models.spec(expression, models.source("lab/base", stored / "base"), *patches)
        spec = VariantSpec(f"sha256:{abs(hash(expression)):064x}", spec.expression, spec.sources)
        asked = {"max_rank": 8, "may_truncate": False, "may_be_dense": False, **given}
        return Order(spec, tmp_path / "handed", memory_bytes=1 << 28, threads=1, **asked)

    return make


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """alpha / r · B A of each module, by the configuration's two numbers alone, as simple engines read it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            assert len(A) == config["r"]
            B = tensors[name.replace("lora_A", "lora_B")].double()
            found[name.removesuffix(".lora_A.weight")] = config["lora_alpha"] / config["r"] * (B @ A.double())
    return found


def check_sum(found: dict[str, torch.Tensor], *parts: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found.keys() == {module for _, part in parts for module in part}
    for module, delta in found.items():
        expected = sum(weight * part[module] for weight, part in parts if module in part)
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(delta, expected, rtol=1e-6, atol=1e-7)


def test_a_sum_is_one_adapter_of_one_rank_and_one_alpha(stored: Path, order: Callable[..., Order]) -> None:
    made = handover.write(order("lab/base + 0.7*lab/one - 0.3*lab/two"))
    assert (made.form, made.rank, made.error) == ("lora", 5, 0.0)
    folder = order("").folder / made.name
    check_sum(deltas(folder), (0.7, deltas(stored / "one")), (-0.3, deltas(stored / "two")))
    assert made == Material.read(folder)


def test_patterns_of_ranks_and_alphas_are_written_out(stored: Path, order: Callable[..., Order]) -> None:
    """One module has another rank and another alpha than the rest, and its scaling goes into B."""
    one = load_file(stored / "one" / "adapter_model.safetensors")
    config = json.loads((stored / "one" / "adapter_config.json").read_text())
    module = next(name for name in one if "layers.1" in name and "v_proj.lora_A" in name)
    one[module] = torch.cat([one[module], one[module]])
    other = module.replace("lora_A", "lora_B")
    one[other] = torch.cat([one[other], one[other]], dim=1)
    (stored / "patterned").mkdir(exist_ok=True)
    save_file(one, stored / "patterned" / "adapter_model.safetensors", {"format": "pt"})
    patterns = {"rank_pattern": {"layers.1.self_attn.v_proj": 4}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}
    (stored / "patterned" / "adapter_config.json").write_text(json.dumps(config | patterns))
    made = handover.write(order("lab/base + lab/patterned"))
    assert made.rank == 4
    expected = deltas(stored / "one")
    changed = module.removesuffix(".lora_A.weight")
    expected[changed] = expected[changed] * 2 * (3 / 4) / (8 / 2)  # twice the same factors, at 3/4 in place of 8/2
    check_sum(deltas(order("").folder / made.name), (1.0, expected))


def test_too_many_ranks_are_refused_with_the_numbers_or_reduced(stored: Path, order: Callable[..., Order]) -> None:
    expression = "lab/base + 0.7*lab/one - 0.3*lab/two"
    with pytest.raises(InvalidRequest, match=r"rank 5 and the engine takes 4.*ADAPTERHUB_ENGINE_TRUNCATE"):
        handover.write(order(expression, max_rank=4))
    made = handover.write(order(expression, max_rank=4, may_truncate=True))
    assert made.rank == 4
    found = deltas(order("").folder / made.name)
    parts = ((0.7, deltas(stored / "one")), (-0.3, deltas(stored / "two")))
    exact = {module: sum(w * part[module] for w, part in parts if module in part) for module in found}
    lost = sum(float((found[module] - exact[module]).square().sum()) for module in found)
    whole = sum(float(torch.as_tensor(delta).square().sum()) for delta in exact.values())
    assert made.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)


def test_what_is_no_sum_becomes_a_model_where_that_is_allowed(stored: Path, order: Callable[..., Order]) -> None:
    expression = "ties(lab/base; 0.6*lab/one, 0.4*lab/two, density=0.5)"
    with pytest.raises(InvalidRequest, match="ADAPTERHUB_ENGINE_DENSE"):
        handover.write(order(expression))
    made = handover.write(order(expression, may_be_dense=True))
    assert made.form == "model"
    base = load_file(stored / "base" / "model.safetensors")
    found = load_file(order("").folder / made.name / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], found[name])}
    assert {name.rsplit(".", 2)[-2] for name in changed} == {"q_proj", "v_proj", "o_proj"}


def test_the_base_is_written_as_it_is(stored: Path, order: Callable[..., Order]) -> None:
    made = handover.write(order("lab/base + lab/one", may_be_dense=True, is_base=True))
    base = load_file(stored / "base" / "model.safetensors")
    found = load_file(order("").folder / made.name / "model.safetensors")
    assert base.keys() == found.keys()
    assert all(torch.equal(base[name], found[name]) for name in base)


def test_a_template_of_its_own_is_told(stored: Path, order: Callable[..., Order]) -> None:
    (stored / "templated").mkdir(exist_ok=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (stored / "templated" / file).write_bytes((stored / "one" / file).read_bytes())
    (stored / "templated" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert handover.write(order("lab/base + lab/templated")).has_own_template
    assert not handover.write(order("lab/base + lab/one")).has_own_template


def test_what_does_not_fit_the_base_is_refused_both_ways(order: Callable[..., Order], stored: Path) -> None:
    models.llama(stored / "wider", width=64)
    models.lora(stored / "wider", stored / "foreign", seed=3)
    found = order("lab/base + lab/one", may_be_dense=True)
    foreign = models.source("lab/one", stored / "foreign", "lora")
    spec = VariantSpec(found.spec.vid, found.spec.expression, (found.spec.base, foreign))
    with pytest.raises(UnfitPatch, match="nor as a LoRA"):
        handover.write(Order(**{**vars(found), "spec": spec}))
    assert not list(found.folder.glob("*"))


@pytest.mark.slow
def test_the_folder_is_written_once_and_emptied_of_what_is_unused(stored: Path, tmp_path: Path) -> None:
    base = models.source("lab/base", stored / "base")
    one = models.source("lab/one", stored / "one", "lora")
    specs = [sum_of(weight, base, one) for weight in (0.25, 0.5, 0.75, 1.5)]
    size = sum(file.stat().st_size for file in (stored / "one").glob("*")) + 30_000
    settings = Settings(engine_folder=tmp_path / "handed", engine_folder_bytes=max(1 << 20, size), threads=1)
    held: set[str] = set()

    async def story() -> list[str]:
        materials = Materials(settings, lambda: held)
        first, second, again = await asyncio.gather(*(materials.get(specs[number]) for number in (0, 1, 0)))
        assert first == again
        held.add(first.name)
        ballast = materials.folder / second.name / "ballast"
        ballast.write_bytes(b"\0" * (1 << 20))
        os.utime(materials.folder / first.name / FACTS, (1, 1))
        os.utime(materials.folder / second.name / FACTS, (2, 2))
        third = await materials.get(specs[2])
        assert not (materials.folder / second.name).exists()
        await materials.stop()
        return [first.name, third.name]

    kept = asyncio.run(story())
    assert sorted(path.name for path in (tmp_path / "handed").iterdir()) == sorted(kept)


@pytest.mark.slow
def test_a_refusal_is_told_again_without_another_try(stored: Path, tmp_path: Path) -> None:
    base = models.source("lab/base", stored / "base")
    two = models.source("lab/two", stored / "two", "lora")
    settings = Settings(engine_folder=tmp_path / "handed", engine_max_rank=1, threads=1)

    async def story() -> tuple[float, float]:
        materials, loop = Materials(settings, set), asyncio.get_running_loop()
        times = []
        for _ in range(2):
            began = loop.time()
            with pytest.raises(InvalidRequest, match="rank 3"):
                await materials.get(sum_of(0.5, base, two))
            times.append(loop.time() - began)
        return times[0], times[1]

    first, second = asyncio.run(story())
    assert second < first / 10


def sum_of(weight: float, base: Source, patch: Source) -> VariantSpec:
    found = models.spec(f"lab/base + {weight}*{patch.reference}", base, patch)
    return VariantSpec(f"sha256:{int(weight * 100):064x}", found.expression, found.sources)


@pytest.mark.parametrize("version", ["0.33.1", "0.33.1.dev7+gabc", "nightly"])
def test_vllm_gets_adapters_of_single_projections_as_they_are(
    stored: Path, order: Callable[..., Order], version: str
) -> None:
    asked = order("lab/base + lab/two", engine=f"vllm@{version}")
    made = handover.write(asked)
    assert (made.rank, made.engine) == (3, f"vllm@{version}")
    check_sum(deltas(asked.folder / made.name), (1.0, deltas(stored / "two")))
    assert asked.found() == made
    assert order("lab/base + lab/two", engine="sglang@0.5.9").found() is None


def test_sglang_gets_the_projections_that_it_looks_for_together(stored: Path, order: Callable[..., Order]) -> None:
    """It would refuse q without v, so there is a v that adds nothing."""
    asked = order("lab/base + lab/two", engine="sglang@0.5.9")
    found = deltas(asked.folder / handover.write(asked).name)
    given = deltas(stored / "two")
    assert found.keys() > given.keys()
    assert all(not delta.any() for module, delta in found.items() if module not in given)
    check_sum({module: found[module] for module in given}, (1.0, given))


def test_what_an_engine_would_apply_nowhere_is_refused(stored: Path, tmp_path: Path) -> None:
    """vLLM's class of GPT-2 takes no adapters."""
    models.gpt2(tmp_path / "gpt2")
    lora = models.lora(tmp_path / "gpt2", tmp_path / "tuned", seed=1, targets=("c_attn",))
    spec = models.spec(
        "lab/gpt2 + lab/tuned", models.source("lab/gpt2", tmp_path / "gpt2"), models.source("lab/tuned", lora, "lora")
    )
    order = Order(spec, tmp_path / "handed", 8, may_truncate=False, may_be_dense=False, memory_bytes=1 << 28, threads=1)
    with pytest.raises(UnfitPatch, match="vLLM would not apply it as it is meant"):
        handover.write(Order(**{**vars(order), "engine": "vllm@0.33.1"}))
