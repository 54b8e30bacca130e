"""Folders of the library adapters: what is recognised, what is refused, and what a head brings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidPatch
from tests.merging.runtime.cases import CORPUS


def copied(name: str, tmp_path: Path, **config: Any) -> Path:
    folder = tmp_path / "patch"
    shutil.copytree(CORPUS / "cases" / name, folder)
    file = folder / "adapter_config.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "config": {**whole["config"], **config}}))
    return folder


def test_facts_name_the_head_and_its_labels(tmp_path: Path) -> None:
    (facts,) = patches.inspect(LocalFolder(copied("houlsby", tmp_path)))
    assert (facts.kind, facts.effect, facts.problems) == ("adapters", "runtime", ())
    assert facts.detail["labels"] == {"LABEL_0": 0, "LABEL_1": 1}
    assert facts.detail["head"] == ["classifier.bias", "classifier.weight"]
    assert facts.detail["architecture"] == "bottleneck"
    # two adapters in each of two layers, of 16 to 4 and back with biases, and the head
    assert facts.parameter_count == 4 * (2 * 16 * 4 + 4 + 16) + 2 * 16 + 2


@pytest.mark.parametrize(
    ("name", "config", "problem"),
    [
        ("houlsby", {"ln_before": True}, "ln_before is True"),
        ("houlsby", {"residual_before_ln": False}, "residual_before_ln is False"),
        ("houlsby", {"non_linearity": "__import__"}, "non_linearity is '__import__'"),
        ("houlsby", {"scaling": "huge"}, "scaling is 'huge'"),
        ("houlsby", {"inv_adapter": "glow"}, "inv_adapter is 'glow'"),
        ("houlsby", {"inv_adapter": "nice"}, "contradict each other"),
        ("houlsby", {"use_gating": True}, "gate.bias is missing"),
        ("houlsby", {"architecture": "union"}, "architecture 'union'"),
        ("houlsby", {"phm_layer": True}, "shared phm_rule is missing"),
        ("compacter", {"phm_dim": 4}, "is missing, or not (4, 4, 4)"),
        ("compacter", {"shared_W_phm": True}, "one W for all layers"),
    ],
)
def test_what_is_not_run_is_recognised_and_said(
    name: str, config: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = LocalFolder(copied(name, tmp_path, **config))
    (facts,) = patches.inspect(folder)
    assert facts.kind == "adapters"
    assert problem in facts.problems[0]
    with pytest.raises(InvalidPatch):
        patches.read(folder)


def test_a_pickle_is_named_and_not_opened(tmp_path: Path) -> None:
    folder = copied("houlsby", tmp_path)
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    (facts,) = patches.inspect(LocalFolder(folder))
    assert "pytorch_adapter.bin is a pickle and never opened" in facts.problems[0]


def test_a_stray_tensor_and_a_missing_one_are_named(tmp_path: Path) -> None:
    folder = copied("houlsby", tmp_path)
    tensors = load_file(folder / "adapter.safetensors")
    name = "bert.encoder.layer.0.output.adapters.tiny.adapter_up.bias"
    save_file({key: one for key, one in tensors.items() if key != name}, folder / "adapter.safetensors")
    (facts,) = patches.inspect(LocalFolder(folder))
    assert "adapter_up.bias is missing" in facts.problems[0]
    save_file({**tensors, "bert.loras.tiny.lora_A": tensors[name].clone()}, folder / "adapter.safetensors")
    (facts,) = patches.inspect(LocalFolder(folder))
    assert "bert.loras.tiny.lora_A belongs to no bottleneck" in facts.problems[0]


def test_the_digest_counts_weights_and_head_and_not_the_name(tmp_path: Path) -> None:
    folder = copied("houlsby", tmp_path)
    before = patches.read(LocalFolder(folder)).digest
    head = load_file(folder / "model_head.safetensors")
    save_file({key: one + 1 for key, one in head.items()}, folder / "model_head.safetensors")
    assert patches.read(LocalFolder(folder)).digest != before
