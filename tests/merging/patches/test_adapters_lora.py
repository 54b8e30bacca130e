"""LoRA and (IA)³ of AdapterHub's library, as it saved them, against the logits that it gave."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from adapterhub.merging import convert, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch
from tests.merging.exactness.compare import LOGITS, fold, record, roundings

CORPUS = Path(__file__).parents[1] / "runtime" / "adapters_corpus"
CASES = ("lora", "lora-gpt2", "lora-llama", "ia3", "ia3-gpt2", "ia3-llama")
LOADERS: dict[str, Any] = {
    "bert": transformers.BertForSequenceClassification,
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
}


def logits(folder: Path, name: str, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = LOADERS[name].from_pretrained(folder).eval()(input_ids=ids).logits
    return found.double()


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, relative to the largest expected."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_folded_it_answers_as_the_library(case: str, tmp_path: Path) -> None:
    folder = CORPUS / "cases" / case
    name = (folder / "base").read_text()
    expected = load_file(folder / "expected.safetensors")
    base = CORPUS / "bases" / name
    (facts,) = patches.inspect(LocalFolder(folder))
    assert (facts.kind, facts.problems) == ("adapters_lora", ())
    out = fold(base, folder, tmp_path / "out")
    merged = logits(out, name, expected["input_ids"])
    variant = f"adapters_lora ({case.partition('-')[0]})"
    error = difference(merged, expected["logits"])
    record(variant, name, "float32", "adapters 1.3.0", error, "logits")
    assert error <= LOGITS
    assert difference(logits(base, name, expected["input_ids"]), merged) > 10 * LOGITS
    here = Checkpoint.open(LocalFolder(base), name="base")
    dense = convert.to_dense(convert.read_patch(LocalFolder(folder), "", here), tmp_path / "dense", here)
    assert dense.as_json()["is_exact"]
    dense_out = fold(base, tmp_path / "dense", tmp_path / "dense-out")
    own = "the fold itself, which answers as adapters 1.3.0"
    again, once = (load_file(one / "model.safetensors") for one in (dense_out, out))
    error = roundings(again, once, torch.float32)
    record(variant, name, "float32", own, error, "as a dense patch")
    assert error <= 1.0


def edited(tmp_path: Path, case: str, **changes: Any) -> Path:
    folder = tmp_path / "edited"
    shutil.copytree(CORPUS / "cases" / case, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["config"] |= changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        ("lora", {"use_gating": True}, "use_gating is set"),
        ("lora", {"r": 2}, "says r 2"),
        ("lora", {"alpha": None}, "alpha is None"),
        ("lora", {"composition_mode": "scale"}, r"lora_B \(out, 1\) alone"),
        ("ia3", {"composition_mode": "add"}, r"lora_A \(r, in\) and lora_B"),
    ],
)
def test_what_does_not_fit_is_said(case: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, case, **changes)
    (facts,) = patches.inspect(LocalFolder(folder))
    assert facts.kind == "adapters_lora"
    with pytest.raises(InvalidPatch, match=says):
        patches.read(LocalFolder(folder))


def test_another_base_is_refused_by_its_sizes(tmp_path: Path) -> None:
    wide = LOADERS["llama"](transformers.LlamaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ShapeMismatch, match="q_proj"):
        patches.read(LocalFolder(CORPUS / "cases" / "lora-llama"), base=Checkpoint.open(LocalFolder(tmp_path / "wide")))
