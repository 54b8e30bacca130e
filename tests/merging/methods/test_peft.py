"""Merges under PEFT's names, through the engine, against peft 0.21.2's own add_weighted_adapter on tiny models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.folders import json_digest
from adapterhub.merging.ops.draws import chosen
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.methods.tuned import make, on_every_architecture

WEIGHTS = {"one": 0.6, "two": -0.3, "six": 1.1}
ALPHAS = {"one": 8, "two": 2, "six": 4}
TYPES: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "cat": {},
    "svd": {},
    "ties": {"density": 0.3},
    "ties_svd": {"density": 0.3, "majority_sign_method": "frequency"},
    "dare_linear": {"density": 0.4},
    "dare_linear_svd": {"density": 0.4, "svd_rank": 2},
    "dare_ties": {"density": 0.4},
    "dare_ties_svd": {"density": 0.4},
    "magnitude_prune": {"density": 0.3},
    "magnitude_prune_svd": {"density": 0.3, "svd_rank": 6},
}
TARGETS = {
    "llama": ["q_proj", "embed_tokens", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "mistral": ["k_proj", "o_proj"],
    "qwen": ["v_proj", "embed_tokens", "up_proj"],
    "bert": ["query", "value"],
}
ORACLE = "peft 0.21.2 add_weighted_adapter, float64"


def adapters(name: str, dtype: str, root: Path, **config: Any) -> tuple[PeftModel, dict[str, Path]]:
    """A base saved in dtype, three LoRAs of different scalings beside it, and the live model that has all of them."""
    made = {"base": tiny.saved(make(name, 0, DTYPES[dtype]), root / "base")}
    model: Any = make(name, 0, DTYPES[dtype]).float()
    model.name_or_path = "tiny/base"
    adapted: Any = None
    for number, one in enumerate(WEIGHTS):
        told = LoraConfig(
            r=4, lora_alpha=ALPHAS[one], target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2", **config
        )
        if adapted is None:
            adapted = get_peft_model(model, told, adapter_name=one, autocast_adapter_dtype=False)
        else:
            adapted.add_adapter(one, told, autocast_adapter_dtype=False)
        torch.manual_seed(number + 1)
        for key, parameter in adapted.named_parameters():
            if f".{one}" in key and "lora" in key:
                parameter.data = torch.randn_like(parameter) * 0.2
        made[one] = root / one
    adapted.create_or_update_model_card = lambda folder: None
    for one in WEIGHTS:
        adapted.save_pretrained(str(root / "saved"), selected_adapters=[one], save_embedding_layers=False)
        (root / "saved" / one).rename(made[one])
    return adapted.double(), made


def theirs(adapted: Any, combination: str, told: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    adapted.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "merged", combination_type=combination, **told)
    adapted.set_adapter("merged")
    state: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return state


def ours(text: str, made: Mapping[str, Path], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    recipe = parse(text)
    inputs = {
        ref: Input(
            f"{ref.name}@{'0' * 40}", LocalFolder(made[ref.name]), kind="model" if ref.name == "base" else "lora"
        )
        for ref in recipe.references()
    }
    run(plan(recipe, inputs, memory_bytes=1 << 30, **options), out)
    return load_file(out / ("model.safetensors" if "as_kind" not in options else "adapter_model.safetensors"))


def text_of(combination: str, told: Mapping[str, Any]) -> str:
    inputs = ", ".join(f"{weight}*{one}" for one, weight in WEIGHTS.items())
    return f"peft_{combination}(base; {inputs}{''.join(f', {key}={value}' for key, value in told.items())})"


def same_masks(monkeypatch: pytest.MonkeyPatch, name: str, made: Mapping[str, Path], *, is_dense: bool) -> None:
    """peft draws what ours draws: for each module in order all A of the inputs, then all B; or all deltas."""
    base = Checkpoint.open(LocalFolder(made["base"]))
    found = {one: patches.read(LocalFolder(made[one]), base=base) for one in WEIGHTS}
    digests = {one: json_digest([[1.0, patch.digest]]) for one, patch in found.items()}
    sites = sorted({term.site for term in found["one"].terms}, key=module_order(name, made["base"]).index)
    parts = [""] if is_dense else [".lora_A", ".lora_B"]
    drawn = iter([(site + part, one) for site in sites for part in parts for one in WEIGHTS])

    def bernoulli(probability: torch.Tensor) -> torch.Tensor:
        tensor, one = next(drawn)
        here = probability.T if is_dense and base.tensors[tensor].shape != probability.shape else probability
        flat = here.flatten(1) if not is_dense else here
        return chosen(0.4, 0, digests[one], tensor, flat).to(probability.dtype).reshape(here.shape)

    patched = type(merge_utils)("torch_with_our_masks")
    patched.__dict__.update(vars(torch) | {"bernoulli": bernoulli})
    monkeypatch.setattr(merge_utils, "torch", patched)


def module_order(name: str, base: Path) -> list[str]:
    """Names of the stored weights in the order in which the live model has its modules."""
    stored = load_file(base / "model.safetensors")
    live = [f"{key}.weight" for key, _ in make(name, 0, torch.float32).named_modules()]
    return [key for key in live if key in stored]


@pytest.mark.parametrize("dtype", DTYPES)
@on_every_architecture
@pytest.mark.parametrize("combination", TYPES)
def test_whole_models_merge_as_in_peft(
    combination: str, name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = TYPES[combination]
    adapted, made = adapters(name, dtype, tmp_path)
    if "dare" in combination:
        same_masks(monkeypatch, name, made, is_dense=combination.endswith("svd"))
    expected = theirs(adapted, combination, told)
    found = ours(text_of(combination, told), made, tmp_path / "out")
    error = roundings(found, {key: expected[key] for key in found}, DTYPES[dtype])
    record(f"peft_{combination}", name, dtype, ORACLE, error, "method")
    assert error <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@on_every_architecture
def test_robustmerge_on_whole_models_is_the_published_code(name: str, dtype: str, tmp_path: Path) -> None:
    adapted: Any
    adapted, made = adapters(name, dtype, tmp_path)
    found = ours("robustmerge(base; one, two, six)", made, tmp_path / "out")
    expected = {key: one.double() for key, one in load_file(made["base"] / "model.safetensors").items()}
    for key, layer in adapted.base_model.model.named_modules():
        if getattr(layer, "lora_A", None) or getattr(layer, "lora_embedding_A", None):
            delta = robustly_merged(layer)
            stored = f"{key}.weight"
            is_turned = delta.shape != expected[stored].shape or name == "gpt2"
            expected[stored] = expected[stored] + (delta.T if is_turned or layer.lora_embedding_A else delta)
    error = roundings(found, expected, DTYPES[dtype])
    record("robustmerge", name, dtype, "the published code's formula, float64", error, "method")
    assert error <= 1.0


def robustly_merged(layer: Any) -> torch.Tensor:
    """B @ A of one layer, as arXiv:2502.17159 prunes and scales them, each LoRA's scaling in its A."""
    total_A, total_B, total_s = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for one in WEIGHTS:
        A = layer.lora_embedding_A[one] if layer.lora_embedding_A else layer.lora_A[one].weight
        B = layer.lora_embedding_B[one] if layer.lora_embedding_A else layer.lora_B[one].weight
        kept_A, kept_B = (
            torch.where(f.abs() >= f.abs().flatten().sort(descending=True).values[int(0.2 * f.numel()) - 1], f, 0.0)
            for f in (A.detach(), B.detach())
        )
        lost = kept_A.abs().sum(1)
        s = torch.where(lost > 0, A.detach().abs().sum(1) / lost, 1.0)
        s = s.clamp_min(float(s.sort().values[int(0.8 * len(s))]))
        total_A, total_B, total_s = total_A + 2 * kept_A * layer.scaling[one], total_B + 2 * s * kept_B, total_s + s
    return total_B / total_s @ total_A


def test_with_rslora_peft_is_off_by_the_root_of_the_rank_and_the_exact_sum_is_ours(tmp_path: Path) -> None:
    adapted, made = adapters("llama", "float32", tmp_path, use_rslora=True)
    site = "model.layers.0.self_attn.q_proj"
    layer: Any = adapted.get_submodule(f"base_model.model.{site}")
    base = load_file(made["base"] / "model.safetensors")[f"{site}.weight"].double()
    exact = sum(weight * layer.get_delta_weight(one) for one, weight in WEIGHTS.items())
    found = ours(text_of("cat", {}), made, tmp_path / "out")[f"{site}.weight"].double() - base
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    merged = theirs(adapted, "cat", {})[f"{site}.weight"] - base
    torch.testing.assert_close(merged, exact * 12**0.5, rtol=1e-4, atol=1e-6)


def test_merging_factors_is_no_sum_of_the_deltas_and_moves_with_their_division(tmp_path: Path) -> None:
    """What the page says of these names: a compatibility mode, wrong as arithmetic of deltas."""
    _, made = adapters("llama", "float32", tmp_path)
    base = load_file(made["base"] / "model.safetensors")
    site = "model.layers.0.self_attn.q_proj.weight"
    linear = ours(text_of("linear", {}), made, tmp_path / "linear")[site] - base[site]
    exact = ours(text_of("cat", {}), made, tmp_path / "cat")[site] - base[site]
    assert float((linear - exact).norm() / exact.norm()) > 0.3


def test_an_exact_sum_stays_a_lora(tmp_path: Path) -> None:
    _, made = adapters("llama", "float32", tmp_path)
    found = ours(text_of("cat", {}), made, tmp_path / "out", as_kind="lora")
    assert {len(one) for key, one in found.items() if "lora_A" in key} == {12}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("peft_linear(base; one, tuned)", "a difference of models"),
        ("peft_ties(base; one + two, six)", "lowrank, lowrank"),
        ("peft_linear(base; one, wide)", r"ranks here are \[4, 6\]"),
        ("peft_linear(base; one, bias)", "an input brings replace here"),
    ],
)
def test_what_is_not_one_lora_of_one_rank_is_refused(text: str, found: str, tmp_path: Path) -> None:
    _, made = adapters("llama", "float32", tmp_path)
    wide: Any = make("llama", 0, torch.float32)
    tiny.adapter(wide, tmp_path / "wide", r=6, target_modules=["q_proj"])
    biased: Any = make("llama", 0, torch.float32)
    tiny.adapter(biased, tmp_path / "bias", target_modules=["o_proj"], modules_to_save=["norm"])
    tuned = tiny.saved(make("llama", 5, torch.float32), tmp_path / "tuned")
    made |= {"wide": tmp_path / "wide", "bias": tmp_path / "bias", "tuned": tuned}
    recipe = parse(text)
    kinds = {"base": "model", "tuned": "model"}
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(made[ref.name]), kind=kinds.get(ref.name, "lora"))
        for ref in recipe.references()
    }
    with pytest.raises(NotFoldable, match=found):
        plan(recipe, inputs, memory_bytes=1 << 30)
