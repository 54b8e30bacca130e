"""Full models, recognised among patches and foreign files."""

import json
from pathlib import Path

import pytest

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import BrokenContainer, ShapeMismatch, UnknownSite
from tests.merging import tiny


def test_a_model_s_facts_come_from_its_config_and_headers(llama_folder: Path) -> None:
    (facts,) = patches.inspect(LocalFolder(llama_folder))
    assert (facts.kind, facts.path, facts.effect) == ("model", "", "replace")
    assert facts.detail["model_type"] == "llama"
    assert facts.parameter_count == sum(parameter.numel() for parameter in tiny.llama().parameters())
    assert facts.layers["0"] == facts.layers["1"]
    assert facts.problems == ()


def test_shards_make_one_model(tmp_path: Path) -> None:
    folder = LocalFolder(tiny.saved(tiny.llama(), tmp_path, max_shard_size="5KB"))
    (facts,) = patches.inspect(folder)
    assert len([name for name in facts.files if name.endswith(".safetensors")]) > 1
    assert set(Checkpoint.open(folder).tensors) == set(tiny.llama().state_dict())


def test_several_patches_and_a_model_live_in_one_repository(tmp_path: Path) -> None:
    tiny.saved(tiny.llama(), tmp_path)
    tiny.adapter(tiny.llama(), tmp_path / "adapters" / "first", target_modules=["q_proj"])
    (tmp_path / "README.md").write_text("# a card")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "adapter_config.json").write_text("{broken")
    (tmp_path / "junk" / "patch.json").write_text("[]")
    found = [(facts.kind, facts.path) for facts in patches.inspect(LocalFolder(tmp_path))]
    assert found == [("model", ""), ("lora", "adapters/first"), ("unknown", "junk")]


def test_a_missing_shard_is_a_problem_and_a_leaving_path_is_refused(tmp_path: Path) -> None:
    tiny.saved(tiny.llama(), tmp_path, max_shard_size="5KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = next(iter(index["weight_map"].values()))
    (tmp_path / shard).unlink()
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert shard in facts.problems[0]
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../" + shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenContainer, match=r"st\.index"):
        patches.inspect(LocalFolder(tmp_path))


def test_code_that_a_config_asks_for_is_shown(tmp_path: Path) -> None:
    tiny.saved(tiny.llama(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    assert patches.inspect(LocalFolder(tmp_path))[0].detail["asks_for_code"] == ["auto_map"]


def test_a_model_is_read_onto_a_base_of_its_shape_alone(llama_folder: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(LocalFolder(llama_folder))
    patch = patches.read(LocalFolder(llama_folder), base=base)
    assert {term.term for term in patch.terms} == {"replace"}
    with pytest.raises(UnknownSite):
        patches.read(LocalFolder(gpt2_folder), base=base)
    wider = tiny.llama()
    wider.resize_token_embeddings(40)
    with pytest.raises(ShapeMismatch, match=r"\(40, 16\)"):
        patches.read(LocalFolder(tiny.saved(wider, tmp_path)), base=base)
