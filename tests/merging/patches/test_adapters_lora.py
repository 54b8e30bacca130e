"""LoRA and (IA)³ of AdapterHub's library, as it saved them, against the logits that it gave."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch
from tests.merging.exactness.compare import LOGITS, fold, record

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


@pytest.mark.parametrize("case", CASES)
def test_folded_it_answers_as_the_library(case: str, tmp_path: Path) -> None:
    folder = CORPUS / "cases" / case
    name = (folder / "base").read_text()
    expected = load_file(folder / "expected.safetensors")
    base = CORPUS / "bases" / name
    (facts,) = patches.inspect(LocalFolder(folder))
    assert (facts.kind, facts.problems) == ("adapters_lora", ())
    merged = logits(fold(base, folder, tmp_path / "out"), name, expected["input_ids"])
    error = float((merged - expected["logits"].double()).abs().max() / expected["logits"].abs().max())
    architecture = {"bert": "bert", "gpt2": "gpt2", "llama": "llama"}[name]
    record(f"adapters_lora ({case.partition('-')[0]})", architecture, "float32", "adapters 1.3.0", error, "logits")
    assert error <= LOGITS
    bare = logits(base, name, expected["input_ids"])
    assert float((bare - merged).abs().max() / merged.abs().max()) > 10 * LOGITS


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
