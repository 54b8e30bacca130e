"""Pickles become safetensors in a confined child: those that peft wrote exactly, those that would run code never."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from adapterhub.merging import patches, pickles
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.pickle_names import is_pickle
from tests.merging import tiny
from tests.merging.exactness.compare import trained


def pickled(folder: Path) -> Any:
    """An adapter that peft saved as adapter_model.bin, and the live model."""
    adapted: Any = trained(tiny.llama(), LoraConfig(target_modules=["q_proj"], r=2), folder)
    adapted.save_pretrained(str(folder), safe_serialization=False, save_embedding_layers=False)
    (folder / "adapter_model.safetensors").unlink()
    return adapted


class Harmful:
    """Writes a file when it is loaded by whoever trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return open, (self.target, "w")


def test_an_adapter_that_peft_pickled_is_the_same_adapter_as_safetensors(tmp_path: Path) -> None:
    adapted = pickled(tmp_path / "in")
    before = (tmp_path / "in" / "adapter_model.bin").read_bytes()
    converted = pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")
    assert converted.files == (("adapter_model.bin", "adapter_model.safetensors", 4),)
    stored = torch.load(tmp_path / "in" / "adapter_model.bin", weights_only=True)
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    assert (tmp_path / "in" / "adapter_model.bin").read_bytes() == before
    (facts,) = patches.inspect(LocalFolder(tmp_path / "out"))
    assert (facts.kind, facts.problems) == ("lora", ())
    loaded = PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "out")).eval()
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, adapted(tokens).logits)


@pytest.mark.parametrize(
    "how", ["torch", *(pytest.param(one, marks=pytest.mark.slow) for one in ("torch (old)", "pickle"))]
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(how: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file, target = tmp_path / "in" / "adapter_model.bin", tmp_path / "written"
    content = {"weight": torch.zeros(2), "more": Harmful(target)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content["more"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InvalidPatch, match=r"adapter_model\.bin: not converted.* could run code"):
        pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")
    assert not target.exists()
    assert not (tmp_path / "out").exists()
    if how == "pickle":  # the trap does spring where somebody trusts it
        pickle.loads(file.read_bytes()).close()
        assert target.exists()


def test_files_of_old_torch_views_and_shared_tensors_keep_their_values(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    whole = torch.arange(12.0).reshape(3, 4)
    stored = {"turned": whole.T, "row": whole[1], "again": whole, "half": whole.bfloat16(), "empty": torch.zeros(0, 3)}
    for name, is_new in (("old.pt", False), ("new.pt", True)):
        torch.save(stored, tmp_path / "in" / name, _use_new_zipfile_serialization=is_new)
    pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")
    for name in ("old", "new"):
        found = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert found.keys() == stored.keys()
        assert all(torch.equal(found[key], stored[key]) and found[key].dtype == stored[key].dtype for key in stored)


def test_what_trainers_leave_is_left_out_and_all_else_is_copied(tmp_path: Path) -> None:
    pickled(tmp_path / "in")
    (tmp_path / "in" / "training_args.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "written")))
    converted = pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")
    assert converted.left_out == ("training_args.bin",)
    names = set(LocalFolder(tmp_path / "out").names())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not any(map(is_pickle, names))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "holds no tensor"),
        ({"a": torch.zeros(1), "epoch": 3}, "epoch is '3', no tensor"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "plain numbers are expected"),
        ({(1, 2): torch.zeros(1)}, "a key of type tuple"),
        ({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, "two values have this name"),
    ],
)
def test_what_is_no_state_dict_is_refused_with_its_name(content: Any, problem: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save(content, tmp_path / "in" / "a.bin")
    with pytest.raises(InvalidPatch, match=r"a\.bin: ") as refused:
        pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")
    assert problem in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_pickle_beside_its_safetensors_is_not_written_over_them(tmp_path: Path) -> None:
    pickled(tmp_path / "in")
    (tmp_path / "in" / "adapter_model.safetensors").write_bytes(b"mine")
    with pytest.raises(InvalidPatch, match="lies beside it already"):
        pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")


def test_a_pickle_that_takes_more_than_its_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled(tmp_path / "in")
    monkeypatch.setattr(pickles, "LEAST_MEMORY_BYTES", 1 << 20)
    with pytest.raises(InvalidPatch, match=r"adapter_model\.bin: not converted"):
        pickles.to_safetensors(LocalFolder(tmp_path / "in"), tmp_path / "out")
