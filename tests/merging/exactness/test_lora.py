"""LoRA and DoRA on every architecture, against what peft merges in float64 and against the live adapter's logits."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, check_logits, check_weights, prepared

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


@pytest.mark.parametrize("variant", ["lora", "lora (dora)"])
@pytest.mark.parametrize("name", [one for one in ARCHITECTURES if ARCHITECTURES[one].embedding])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_embedding_folds_to_the_live_adapters_logits(name: str, variant: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    config = LoraConfig(target_modules=[str(architecture.embedding), architecture.linear[0]], **VARIANTS[variant])
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    check_logits(variant, architecture, base, patch, adapted, tmp_path, oracle="live adapter")


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "bert"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_rows_of_an_embedding_trained_beside_a_lora_fold(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    rows = {str(architecture.embedding): [5, 2, 9]}
    config = LoraConfig(target_modules=[architecture.linear[0]], trainable_token_indices=rows, **VARIANTS["lora"])
    base, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    check_logits("lora (token rows)", architecture, base, patch, adapted, tmp_path, oracle="live adapter")
