"""GGUF LoRAs: a file that gguf-py 0.19 wrote, of numbers that `random` makes again, against the formula in float64."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import LocalFolder, MappedFile, MappedFolder
from adapterhub.merging.errors import BrokenContainer, NotFoldable
from adapterhub.merging.gguf import open_gguf
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, fold, record, roundings

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


def test_it_is_told_from_the_header_and_read_with_its_base_alone(patch: Path) -> None:
    (facts,) = patches.inspect(LocalFolder(patch))
    assert (facts.kind, facts.rank_max, facts.problems) == ("gguf", 3, ())
    with pytest.raises(NotFoldable, match="name the base, whose heads undo it"):
        patches.read(LocalFolder(patch))


@given(cut=st.integers(0, 2000), at=st.integers(0, 400), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=200)
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
