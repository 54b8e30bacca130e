"""Conversions keep the patch: what was written is read, folded or loaded by peft, and compared with the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from adapterhub.merging import convert, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, NotFoldable, NotRepresentable
from adapterhub.merging.fingerprint import parameter_digests
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, prepared, record, roundings

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]

LINEAR = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"]}
CONV1D = ("lora", "lora (dora)", "adalora", "ia3")
"""What peft lets adapt gpt2's Conv1D."""
CONFIGS: dict[str, Any] = {
    "lora": lambda targets: peft.LoraConfig(target_modules=targets, r=2),
    "loha": lambda targets: peft.LoHaConfig(target_modules=targets, r=3),
    "lokr": lambda targets: peft.LoKrConfig(target_modules=targets, r=1),
    "adalora": lambda targets: peft.AdaLoraConfig(target_modules=targets, init_r=3, total_step=10),
}
DEPENDENT: dict[str, Any] = {
    "lora (dora)": lambda targets: peft.LoraConfig(target_modules=targets, r=2, use_dora=True),
    "oft": lambda targets: peft.OFTConfig(target_modules=targets, oft_block_size=4),
    "ia3": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=[]),
    "shira": lambda targets: peft.ShiraConfig(target_modules=targets, r=2),
}


def fits(kind: str, name: str) -> bool:
    return name != "gpt2" or kind in CONV1D


def opened(base: Path) -> Checkpoint:
    return Checkpoint.open(LocalFolder(base))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CONFIGS for name in LINEAR if fits(kind, name)])
def test_a_lora_is_written_with_and_without_the_base_alike(kind: str, name: str, tmp_path: Path) -> None:
    base, patch, adapted = prepared(ARCHITECTURES[name], "float32", CONFIGS[kind](LINEAR[name]), tmp_path)
    found = {}
    for how, here in (("with", opened(base)), ("without", None)):
        read = convert.read_patch(LocalFolder(patch), "", here)
        conversion = convert.to_kind(read, tmp_path / how, "lora", here, "tiny/base")
        assert conversion.as_json()["is_exact"]
        assert len(conversion.errors) == 4
        found[how] = load_file(tmp_path / how / "adapter_model.safetensors")
    assert found["with"].keys() == found["without"].keys()
    assert all(torch.equal(found["with"][key], found["without"][key]) for key in found["with"])
    loaded: Any = peft.PeftModel.from_pretrained(ARCHITECTURES[name].make(), str(tmp_path / "without"))
    merged = loaded.double().merge_and_unload().state_dict()
    error = roundings(merged, adapted.double().merge_and_unload().state_dict(), torch.float32)
    record(kind, name, "float32", "peft merge_and_unload, float64", error, "as a LoRA")
    record("lora", name, "float32", "peft merge_and_unload, float64", error, "written")
    assert error <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in CONFIGS | DEPENDENT for name in LINEAR if fits(kind, name)]
)
def test_a_dense_patch_adds_what_peft_merges(kind: str, name: str, dtype: str, tmp_path: Path) -> None:
    make = (CONFIGS | DEPENDENT)[kind]
    base, patch, adapted = prepared(ARCHITECTURES[name], dtype, make(LINEAR[name]), tmp_path)
    here = opened(base)
    conversion = convert.to_dense(convert.read_patch(LocalFolder(patch), "", here), tmp_path / "out", here)
    assert conversion.as_json()["is_exact"]
    before = {key: value.double() for key, value in ARCHITECTURES[name].make(dtype=DTYPES[dtype]).state_dict().items()}
    expected = adapted.double().merge_and_unload().state_dict()
    deltas = load_file(tmp_path / "out" / "patch.safetensors")
    assert {key.partition("::")[0] for key in deltas} == conversion.errors.keys()
    folded = before | {key.partition("::")[0]: before[key.partition("::")[0]] + deltas[key].double() for key in deltas}
    error = roundings(folded, expected, torch.float32)  # nothing was rounded to the base's dtype
    record(kind, name, dtype, "peft merge_and_unload, float64", error, "as a dense patch")
    assert error <= 1.0
    manifest = json.loads((tmp_path / "out" / "patch.json").read_text())
    assert manifest["base"]["fingerprint"]["params"] == parameter_digests(here, conversion.errors)
    assert manifest["provenance"]["source_format"] == kind.partition(" ")[0]


def test_the_adapter_before_training_makes_a_plain_lora_of_pissa(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    config = peft.LoraConfig(target_modules=["q_proj"], r=3, init_lora_weights="pissa")
    _, patch, adapted = prepared(architecture, "float32", config, tmp_path)
    config.base_model_name_or_path = None
    start: Any = peft.get_peft_model(architecture.make(), config)
    start.save_pretrained(str(tmp_path / "initial"), save_embedding_layers=False)
    with pytest.raises(InvalidPatch, match="name it with --base"):
        convert.read_patch(LocalFolder(patch), "", None)
    read = convert.read_patch(LocalFolder(patch), "", None, LocalFolder(tmp_path / "initial"))
    assert convert.to_kind(read, tmp_path / "out", "lora", None, "tiny/base").as_json()["is_exact"]
    loaded: Any = peft.PeftModel.from_pretrained(architecture.make(), str(tmp_path / "out"))
    found = loaded.double().merge_and_unload().state_dict()
    for key, value in adapted.double().merge_and_unload().state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=2e-6)


def test_what_has_no_such_form_is_refused_and_nothing_written(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama"]
    base, patch, _ = prepared(architecture, "float32", DEPENDENT["ia3"](["q_proj"]), tmp_path)
    read = convert.read_patch(LocalFolder(patch), "", opened(base))
    with pytest.raises(NotRepresentable, match=r"q_proj\.weight: a scale term has no exact low-rank form"):
        convert.to_kind(read, tmp_path / "out", "lora", opened(base), "tiny/base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(architecture.make(), config).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(NotFoldable, match="works at run time"):
        convert.read_patch(LocalFolder(tmp_path / "prompt"), "", opened(base))
    with pytest.raises(InvalidPatch, match="no patch of a known kind"):
        convert.read_patch(LocalFolder(tmp_path / "nothing"), "", None)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_what_parts_tied_embeddings_is_no_dense_patch(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["llama-tied"]
    config = peft.LoraConfig(target_modules=["embed_tokens"], r=2)
    base, patch, _ = prepared(architecture, "float32", config, tmp_path)
    read = patches.read(LocalFolder(patch), base=opened(base))
    with pytest.raises(NotRepresentable, match=r"the patch parts it from lm_head\.weight"):
        convert.to_dense(read, tmp_path / "out", opened(base))
