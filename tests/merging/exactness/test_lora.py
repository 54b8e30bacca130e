"""LoRA and DoRA on every architecture, against what peft merges in float64 and against the live adapter's logits."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.torch import load_file, save_file

from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, check_logits, check_weights, fold, prepared, record, roundings

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`")

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 6},
    "lora (rslora)": {"r": 3, "lora_alpha": 6, "use_rslora": True},
    "lora (dora)": {"r": 4, "lora_alpha": 6, "use_dora": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folds_as_peft_merges(name: str, variant: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = LoraConfig(target_modules=list(architecture.linear), **VARIANTS[variant])
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights(variant, architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["lora", "lora (dora)"])
@pytest.mark.parametrize("name", [one for one in ARCHITECTURES if ARCHITECTURES[one].embedding])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_embedding_folds_to_the_live_adapters_logits(name: str, variant: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = LoraConfig(target_modules=[str(architecture.embedding), architecture.linear[0]], **VARIANTS[variant])
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits(variant, architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "bert"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_rows_of_an_embedding_trained_beside_a_lora_fold(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    rows = {str(architecture.embedding): [5, 2, 9]}
    config = LoraConfig(target_modules=[architecture.linear[0]], trainable_token_indices=rows, **VARIANTS["lora"])
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits("lora (token rows)", architecture, dtype, base, patch, adapted, tmp_path)


REPLICATING = ("bert", "gemma", "llama", "llama-tied", "mistral", "mixtral", "phi3")
"""Architectures whose layers peft finds; it looks for those of Falcon and GPT-2 where theirs are not."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REPLICATING)
def test_each_copy_of_a_repeated_layer_takes_its_own_delta(name: str, dtype: str, tmp_path: Path) -> None:
    """peft's own merge puts the deltas of all copies into the one weight that they share."""
    architecture = ARCHITECTURES[name]
    config = LoraConfig(target_modules=list(architecture.linear), layer_replication=[(0, 2), (0, 2), (1, 2)], r=4)
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_logits("lora (layer_replication)", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_block_diagonal_factors_fold_as_peft_merges(name: str, dtype: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    half = len(architecture.linear) // 2
    inner, outer = (["." + one for one in part] for part in (architecture.linear[:half], architecture.linear[half:]))
    outer = [one for one in outer if not one.startswith(tuple(inner))]  # peft looks for these anywhere in a path
    blocks = BdLoraConfig(target_modules_bd_a=inner, target_modules_bd_b=outer, nblocks=2, match_strict=False)
    config = LoraConfig(target_modules=list(architecture.linear), r=4, lora_alpha=6, use_bdlora=blocks)
    if architecture.has_conv1d:
        with pytest.raises(AttributeError, match="'Conv1D' object has no attribute 'in_features'") as refusal:
            prepared(architecture, dtype, config, tmp_path)
        record("lora (bdlora)", name, dtype, f"peft refuses: {refusal.value}", 0.0, "refused")
        return
    base, patch, adapted = prepared(architecture, dtype, config, tmp_path)
    check_weights("lora (bdlora)", architecture, dtype, base, patch, adapted, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_factors_of_pooled_inputs_fold_to_what_peft_computes(name: str, dtype: str, tmp_path: Path) -> None:
    """peft has QA-LoRA on GPTQ layers alone, and refuses to merge into their codes: its forward pass is the oracle."""
    architecture = ARCHITECTURES[name]
    plain = LoraConfig(target_modules=list(architecture.linear), r=4, lora_alpha=6)
    base, patch, _ = prepared(architecture, dtype, plain, tmp_path)
    stored = load_file(patch / "adapter_model.safetensors")
    pooled = {key: value[:, ::4].contiguous() if ".lora_A." in key else value for key, value in stored.items()}
    save_file(pooled, patch / "adapter_model.safetensors")
    said = json.loads((patch / "adapter_config.json").read_text()) | {"use_qalora": True, "qalora_group_size": 4}
    (patch / "adapter_config.json").write_text(json.dumps(said))
    expected = {key: value.double() for key, value in architecture.make(dtype=DTYPES[dtype]).state_dict().items()}
    for key in [key for key in pooled if key.endswith(".lora_A.weight")]:
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        delta = qalora_delta(pooled[key].double(), pooled[key.replace("lora_A", "lora_B")].double(), group=4)
        weight = expected[f"{module}.weight"]
        weight += 1.5 * (delta.T if architecture.has_conv1d else delta)
    merged = architecture.loader.from_pretrained(fold(base, patch, tmp_path / "out"))
    error = roundings(merged.state_dict(), expected, DTYPES[dtype])
    record("lora (qalora)", name, dtype, "peft QALoraLinearVariant.forward, float64", error)
    assert error <= 1.0


def qalora_delta(A: torch.Tensor, B: torch.Tensor, *, group: int) -> torch.Tensor:
    """The matrix (out, in) that peft's forward pass of QA-LoRA applies, from what it does to the unit vectors."""
    inputs = A.shape[1] * group
    layer: Any = SimpleNamespace(
        lora_A={"a": SimpleNamespace(weight=A)},
        lora_B={"a": SimpleNamespace(weight=B)},
        lora_dropout={"a": torch.nn.Identity()},
        scaling={"a": 1.0},
        qalora_group_size={"a": group},
        in_features=inputs,
        training=False,
    )
    zero = torch.zeros(inputs, B.shape[0]).double()
    applied: torch.Tensor = QALoraLinearVariant.forward(layer, "a", torch.eye(inputs).double(), zero)
    return applied.T
