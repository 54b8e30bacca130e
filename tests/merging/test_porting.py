import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.convert import to_dense
from adapterhub.merging.errors import BaseMismatch, InvalidParameter, NotRepresentable
from adapterhub.merging.native import select, sparse, term, write_patch
from adapterhub.merging.patch import TrainingBase
from adapterhub.merging.patches import read
from adapterhub.merging.porting import PortResult, port
from adapterhub.merging.site_deltas import site_deltas
from adapterhub.merging.transfer import strategies
from tests.merging import tiny
from tests.merging.build import checkpoint, random

NEW = TrainingBase("demo/base-v2", "1" * 40, "sha256:" + "2" * 64)


def base(scale: float = 1.0) -> Checkpoint:
    return checkpoint(w=random(8, 6) * scale)


def write_native(folder: Path, kind: str) -> Path:
    delta = random(8, 6, seed=1).numpy()
    chosen = np.abs(delta) > 1
    term = sparse(np.where(chosen, delta, 0)) if kind == "sparse" else select(chosen, delta)
    write_patch(folder, sites={"w": term}, base={"repo_id": "demo/base", "model_type": "tiny"})
    return folder


def ported(source: Path, out: Path, *, strategy: str = "direct", target: Checkpoint | None = None) -> PortResult:
    folder, target = LocalFolder(source), target or base()
    patch = read(folder, "", base=target)
    return port(patch, folder, base(), target, out=out, base=NEW, strategy=strategy)


@pytest.mark.parametrize("kind", ["sparse", "mask"])
@pytest.mark.parametrize("strategy", sorted(strategies()))
def test_a_port_to_an_equal_base_keeps_every_byte_of_the_weights(tmp_path: Path, kind: str, strategy: str) -> None:
    source = write_native(tmp_path / "patch", kind)
    result = ported(source, tmp_path / "out", strategy=strategy)
    assert result.report.verdict == "identical"
    assert (tmp_path / "out/patch.safetensors").read_bytes() == (source / "patch.safetensors").read_bytes()
    assert [file.name for file in result.files] == ["README.md", "patch.json", "patch.safetensors", "port.json"]


@pytest.mark.parametrize("kind", ["sparse", "mask"])
def test_a_native_port_names_its_new_base_and_keeps_the_rest(tmp_path: Path, kind: str) -> None:
    source = write_native(tmp_path / "patch", kind)
    ported(source, tmp_path / "out")
    before, after = (json.loads((folder / "patch.json").read_text()) for folder in (source, tmp_path / "out"))
    assert after["base"]["repo_id"] == "demo/base-v2"
    assert after["base"]["revision"] == "1" * 40
    assert after["base"]["fingerprint"]["root"] == NEW.fingerprint
    assert after["base"]["model_type"] == "tiny"
    assert after | {"base": None} == before | {"base": None}
    assert read(LocalFolder(tmp_path / "out"), "", base=base()).facts.base.name == "demo/base-v2"


def test_a_lora_port_names_its_new_base_and_loads_in_peft(tmp_path: Path) -> None:
    model, evolved = tiny.llama(), tiny.llama()
    tiny.saved(model, tmp_path / "base")
    tiny.adapter(model, tmp_path / "patch", target_modules=["q_proj", "down_proj"])
    before = Checkpoint.open(LocalFolder(tmp_path / "base"))
    folder = LocalFolder(tmp_path / "patch")
    port(read(folder, "", base=before), folder, before, before, out=tmp_path / "out", base=NEW)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    original = json.loads((tmp_path / "patch/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo/base-v2"
    assert config["revision"] == "1" * 40
    changed = {key for key in original if original[key] != config[key]}
    assert changed == {"base_model_name_or_path", "revision"}
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "patch" / weights).read_bytes()
    loaded = PeftModel.from_pretrained(evolved, str(tmp_path / "out"))
    tokens = torch.arange(8)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_the_report_is_written_beside_the_patch(tmp_path: Path) -> None:
    source = write_native(tmp_path / "patch", "sparse")
    result = ported(source, tmp_path / "out", target=base(1.01))
    record = json.loads((tmp_path / "out/port.json").read_text())
    assert record["report"]["verdict"] == result.report.verdict == "likely"
    assert record["from"]["name"] == "demo/base"
    assert record["to"]["name"] == "demo/base-v2"
    card = (tmp_path / "out/README.md").read_text()
    assert 'base_model: "demo/base-v2"' in card
    assert result.report.sentence in card


def test_a_refused_port_leaves_nothing(tmp_path: Path) -> None:
    source = write_native(tmp_path / "patch", "sparse")
    folder = LocalFolder(source)
    patch = read(folder, "", base=base())
    with pytest.raises(BaseMismatch, match="demo/base-v2: Refused: w is not in the new base"):
        port(patch, folder, base(), checkpoint(v=random(8, 6)), out=tmp_path / "out", base=NEW)
    assert not (tmp_path / "out").exists()


def test_an_unknown_strategy_is_refused_with_those_known(tmp_path: Path) -> None:
    source = write_native(tmp_path / "patch", "sparse")
    with pytest.raises(InvalidParameter, match="known are direct"):
        ported(source, tmp_path / "out", strategy="teleport")


def test_a_folder_that_holds_files_is_not_written_to(tmp_path: Path) -> None:
    source = write_native(tmp_path / "patch", "sparse")
    with pytest.raises(FileExistsError, match="name a folder that is empty"):
        ported(source, source)


def test_values_drawn_anew_port_whole_and_never_as_a_delta(tmp_path: Path) -> None:
    value = random(8, 6, seed=1)
    top = term("replace", (8, 6), options={"reinitialised": True}, value=value.numpy())
    write_patch(tmp_path / "patch", sites={"w": top}, base={"repo_id": "demo/base"})
    target = base(scale=3.0)
    result = ported(tmp_path / "patch", tmp_path / "out", target=target)
    assert "drawn anew" in result.report.sentence
    again = read(LocalFolder(tmp_path / "out"), "", base=target)
    assert [(one.term, one.options["reinitialised"]) for one in again.terms] == [("replace", True)]
    W = torch.frombuffer(bytearray(target.tensors["w"].read()), dtype=torch.float32).view(8, 6)
    [delta] = site_deltas(again).values()
    torch.testing.assert_close(W.double() + delta.dense(W.double()), value.double())
    with pytest.raises(NotRepresentable, match="drawn anew"):
        to_dense(again, tmp_path / "dense", target)
