"""GGUF LoRAs: a file that gguf-py 0.19 wrote, of numbers that `random` makes again, against the formula in float64."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file

from adapterhub.merging import convert, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, MappedFile, MappedFolder
from adapterhub.merging.errors import BrokenContainer, NotFoldable, NotRepresentable
from adapterhub.merging.gguf import open_gguf
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, check_dense, check_lora, fold, prepared, record, roundings

FILE = Path(__file__).parent / "files" / "adapter.gguf"
"""LoRA of rank 3 and alpha 4.5 on every projection of the tiny Llama, q and k permuted as llama.cpp does."""


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    (tmp_path / "patch").mkdir()
    shutil.copy(FILE, tmp_path / "patch")
    return tmp_path / "patch"


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_folds_by_the_formula_with_rows_in_the_order_of_transformers(
    dtype: str, patch: Path, tmp_path: Path
) -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.make(dtype=DTYPES[dtype])
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for number, name in enumerate([name for name in expected if name.endswith("_proj.weight")]):
        out, fan_in = expected[name].shape
        delta = random(out, 3, seed=number + 100).double() @ random(3, fan_in, seed=number).double()
        expected[name] += 1.5 * delta
    base = tiny.saved(model, tmp_path / "base")
    merged = architecture.loader.from_pretrained(fold(base, patch, tmp_path / "out"))
    error = roundings(merged.state_dict(), expected, DTYPES[dtype])
    record("gguf", "llama", dtype, "float64 formula (file of gguf-py)", error)
    assert error <= 1.0
    check_dense("gguf", "llama", dtype, base, patch, expected, tmp_path)
    if dtype == "float32":
        check_lora("gguf", architecture, base, patch, expected, tmp_path)


def test_it_is_told_from_the_header_and_read_with_its_base_alone(patch: Path) -> None:
    (facts,) = patches.inspect(LocalFolder(patch))
    assert (facts.kind, facts.rank_max, facts.problems) == ("gguf", 3, ())
    with pytest.raises(NotFoldable, match="name the base, whose heads undo it"):
        patches.read(LocalFolder(patch))


@given(cut=st.integers(0, 2000), at=st.integers(0, 400), byte=st.integers(0, 255))
@settings(max_examples=200)
def test_no_damaged_file_does_more_than_be_refused(
    cut: int, at: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(FILE.read_bytes()[:cut])
    if at < len(raw):
        raw[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw)
    folder = MappedFolder({"damaged.gguf": MappedFile(path, "sha256:" + "0" * 64, len(raw))})
    with pytest.raises(BrokenContainer):
        open_gguf(folder, "damaged.gguf")


def test_another_magic_or_version_is_refused(tmp_path: Path) -> None:
    for start in (b"GGML", b"GGUF" + struct.pack("<I", 1)):
        (tmp_path / "a.gguf").write_bytes(start + FILE.read_bytes()[len(start) :])
        with pytest.raises(BrokenContainer, match="GGUF 2 or 3 is expected"):
            open_gguf(LocalFolder(tmp_path), "a.gguf")


def converted(source: Path, out: Path, kind: str, base: Path) -> Path:
    here = Checkpoint.open(LocalFolder(base), name=str(base))
    conversion = convert.to_kind(convert.read_patch(LocalFolder(source), "", here), out, kind, here, "tiny/base")
    assert conversion.as_json()["is_exact"]
    return out


def test_what_gguf_py_wrote_is_written_again_byte_by_byte(patch: Path, tmp_path: Path) -> None:
    """By way of a peft LoRA, whose q and k have the other order of rows."""
    base = tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "base")
    lora = converted(patch, tmp_path / "lora", "lora", base)
    again = converted(lora, tmp_path / "again", "gguf", base)
    assert (again / "adapter.gguf").read_bytes() == FILE.read_bytes()
    assert (converted(patch, tmp_path / "straight", "gguf", base) / "adapter.gguf").read_bytes() == FILE.read_bytes()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}], ids=str)
def test_it_is_written_so_that_it_folds_as_peft_merges(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    lora = LoraConfig(target_modules=["q_proj", "k_proj", "o_proj", "down_proj"], r=3, lora_alpha=5, **config)
    base, patch, adapted = prepared(architecture, "float32", lora, tmp_path)
    written = converted(patch, tmp_path / "gguf", "gguf", base)
    merged = architecture.loader.from_pretrained(fold(base, written, tmp_path / "out")).state_dict()
    error = roundings(merged, adapted.double().merge_and_unload().state_dict(), torch.float32)
    record("gguf", name, "float32", "peft merge_and_unload, float64", error, "written")
    assert error <= 1.0


def test_a_lora_comes_back_bit_for_bit_and_so_does_its_alpha(tmp_path: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj", "lm_head"], r=3, lora_alpha=5)
    base, patch, _ = prepared(ARCHITECTURES["llama"], "float32", lora, tmp_path)
    again = converted(converted(patch, tmp_path / "gguf", "gguf", base), tmp_path / "again", "lora", base)
    before, after = (load_file(one / "adapter_model.safetensors") for one in (patch, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((again / "adapter_config.json").read_text())["lora_alpha"] == 5


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("llama-tied", {"target_modules": ["lm_head"]}, "lm_head: base .* ties it to its input"),
        ("llama", {"target_modules": ["embed_tokens"]}, "embed_tokens: no tensor of a GGUF adapter"),
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}, "q_proj: is a DoRA"),
        ("opt", {"target_modules": ["q_proj"]}, "is 'opt'; mistral, gemma3_text, llama"),
    ],
)
def test_what_the_file_cannot_say_is_refused(name: str, config: dict[str, Any], says: str, tmp_path: Path) -> None:
    base, patch, _ = prepared(ARCHITECTURES[name], "float32", LoraConfig(r=2, **config), tmp_path)
    with pytest.raises(NotRepresentable, match=says):
        converted(patch, tmp_path / "gguf", "gguf", base)
    assert not (tmp_path / "gguf").exists()
    found = patches.read(LocalFolder(patch))
    with pytest.raises(NotRepresentable, match="name it with --base"):
        convert.to_kind(found, tmp_path / "gguf", "gguf", None, "tiny/base")
