"""Folders, headers, handles and the writer, with the safetensors library as the second opinion."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save_file

from adapterhub.merging.checkpoint import (
    Checkpoint,
    LocalFolder,
    MappedFolder,
    SafetensorsWriter,
    TensorHandle,
    layout,
    open_tensors,
    read_header,
)
from adapterhub.merging.container import Header
from adapterhub.merging.errors import BrokenContainer, InvalidPatch


def container(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def header_of(raw: bytes, limit_bytes: int = 1 << 20) -> Header:
    return read_header(lambda start, end: raw[start:end], len(raw), "x.safetensors", limit_bytes=limit_bytes)


def entry(start: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "st.header"),
    "seven bytes": (b"\0" * 7, "st.header"),
    "length zero": (b"\0" * 8, "st.header"),
    "length past the file": ((99).to_bytes(8, "little") + b"{}", "st.header"),
    "length 2^63": ((2**63).to_bytes(8, "little") + b"{}", "st.header"),
    "no json": (container(b"{nonsense"), "st.header"),
    "not utf-8": (container(b'{"\xff":1}'), "st.header"),
    "an array": (container(b"[]"), "st.header"),
    "leading spaces": (container(b"  {}"), "st.header"),
    "nested deeply": (container(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "st.header"),
    "NaN": (container(b'{"a":NaN}'), "st.header"),
    "header past the cap": (container(b"{}" + b" " * (1 << 20)), "st.header"),
    "duplicate tensor": (
        container(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "st.duplicate_key",
    ),
    "duplicate key in an entry": (
        container(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "st.duplicate_key",
    ),
    "overlap": (container({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"), "st.offsets"),
    "hole": (container({"a": entry(0, 1), "b": entry(2, 3)}, b"xxx"), "st.offsets"),
    "reversed": (container({"a": {**entry(0, 1), "data_offsets": [1, 0]}}, b"x"), "st.offsets"),
    "negative offset": (container({"a": {**entry(0, 1), "data_offsets": [-1, 0]}}, b"x"), "st.offsets"),
    "float offset": (container({"a": {**entry(0, 1), "data_offsets": [0, 1.0]}}, b"x"), "st.offsets"),
    "true as an offset": (container({"a": {**entry(0, 1), "data_offsets": [0, True]}}, b"x"), "st.offsets"),
    "trailing bytes": (container({"a": entry(0, 1)}, b"xx"), "st.offsets"),
    "truncated": (container({"a": entry(0, 2)}, b"x"), "st.offsets"),
    "fewer bytes than the shape": (container({"a": entry(0, 2, [3])}, b"xx"), "st.offsets"),
    "shape overflow": (container({"a": entry(0, 0, [2**62, 2**62, 4])}), "st.shape"),
    "negative dimension": (container({"a": entry(0, 0, [-1, 0])}), "st.shape"),
    "odd number of four bits": (container({"a": entry(0, 1, [3], "F4")}, b"x"), "st.shape"),
    "unknown dtype": (container({"a": entry(0, 1, dtype="F99")}, b"x"), "st.dtype"),
    "dtype of a wrong type": (container({"a": entry(0, 1, dtype=["U8"])}, b"x"), "st.dtype"),
    "unknown key": (container({"a": {**entry(0, 1), "note": 1}}, b"x"), "st.entry"),
    "missing key": (container({"a": {"dtype": "U8", "shape": [0]}}), "st.entry"),
    "entry is a number": (container({"a": 1}), "st.entry"),
    "metadata of numbers": (container({"__metadata__": {"a": 1}}), "st.metadata"),
    "parent folder in a name": (container({"../../etc/passwd": entry(0, 1)}, b"x"), "st.name"),
    "empty name": (container({"": entry(0, 1)}, b"x"), "st.name"),
    "NUL in a name": (container({"a\0b": entry(0, 1)}, b"x"), "st.name"),
    "direction mark in a name": (container({"a‮b": entry(0, 1)}, b"x"), "st.name"),
    "backslash in a name": (container({"a\\b": entry(0, 1)}, b"x"), "st.name"),
    "name of 4 kB": (container({"a" * 4096: entry(0, 1)}, b"x"), "st.name"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_refused_by_rule(case: str) -> None:
    raw, rule = BROKEN[case]
    with pytest.raises(BrokenContainer) as caught:
        header_of(raw)
    assert caught.value.rule == rule
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["<my cat>", "*", "lora_unet_down.alpha", "a" * 512, "[0] + {x} | 'y' \"z\""])
def test_a_tensor_may_have_any_name_of_printable_ascii(name: str) -> None:
    assert set(header_of(container({name: entry(0, 1)}, b"x")).tensors) == {name}


def test_more_tensors_than_allowed_are_refused_before_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.merging.container.MAX_TENSORS", 3)
    raw = container({f"t{index}": entry(0, 0) for index in range(4)})
    with pytest.raises(BrokenContainer, match=r"st\.count"):
        header_of(raw)


def test_a_header_of_millions_of_values_is_refused_before_parsing() -> None:
    raw = container(b'{"a":[' + b"[]," * 5_000_000 + b"0]}")
    with pytest.raises(BrokenContainer, match=r"st\.count"):
        header_of(raw, limit_bytes=1 << 30)


DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.from_regex(r"[A-Za-z0-9_.:@]{1,12}", fullmatch=True).filter(lambda name: name not in ("..", "__metadata__"))
tensors = st.dictionaries(names, st.tuples(st.sampled_from(sorted(DTYPES)), shapes), max_size=6)


@settings(max_examples=30)
@given(planned=tensors, order=st.randoms(use_true_random=False))
def test_the_library_reads_what_the_writer_wrote_in_any_order(
    planned: dict[str, Any], order: Any, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    values = {
        name: (np.arange(int(np.prod(shape))) % 2).astype(DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape) in planned.items()
    }
    shuffled = list(values)
    order.shuffle(shuffled)
    with SafetensorsWriter(path, planned) as writer:
        for name in shuffled:
            writer.write(name, values[name].tobytes())
        size, digest = writer.finish()
    assert size == path.stat().st_size == layout(planned).size_bytes
    assert digest == LocalFolder(path.parent).digest("x.safetensors")
    loaded = load_file(path)
    assert set(loaded) == set(values)
    assert all(np.array_equal(loaded[name], values[name]) for name in values)
    handles, metadata = open_tensors(LocalFolder(path.parent), "x.safetensors")
    assert metadata == {"format": "pt"}
    assert all(handles[name].read() == values[name].tobytes() for name in values)
    assert all((handles[name].dtype, handles[name].shape) == planned[name] for name in values)


@given(raw=st.binary(max_size=80) | st.binary(max_size=60).map(lambda text: container(b'{"a":' + text + b"}", b"1234")))
def test_whatever_is_accepted_here_the_library_accepts_too(raw: bytes) -> None:
    try:
        header = header_of(raw)
    except BrokenContainer:
        return
    assert set(load(raw)) == set(header.tensors)


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    weights: dict[str, np.ndarray[Any, Any]] = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros((0, 4), np.float16),
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"made": "here"})
    checkpoint = Checkpoint.open(LocalFolder(tmp_path))
    assert checkpoint.files == ("model.safetensors",)
    assert checkpoint.tensors["a.weight"].read() == weights["a.weight"].tobytes()
    assert checkpoint.tensors["b"].nbytes == 0
    assert checkpoint.config == {}


def sharded(folder: Path, weight_map: dict[str, Any]) -> None:
    save_file({"a": np.ones(2, np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    (tmp_path / "config.json").write_text('{"model_type": "tiny"}')
    checkpoint = Checkpoint.open(LocalFolder(tmp_path))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.config["model_type"] == "tiny"


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../../secret.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "absent.safetensors"},
        {"a": 7},
        {},
        {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"},
        {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
    ],
    ids=["parent", "absolute", "absent", "number", "empty", "other tensor", "wrong shard"],
)
def test_an_index_that_does_not_match_its_shards_is_refused(tmp_path: Path, weight_map: dict[str, Any]) -> None:
    sharded(tmp_path, weight_map)
    with pytest.raises((BrokenContainer, InvalidPatch), match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(LocalFolder(tmp_path))


def test_a_folder_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InvalidPatch, match=r"no model\.safetensors"):
        Checkpoint.open(LocalFolder(tmp_path))


def test_a_mapped_folder_survives_json(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"hello")
    folder = MappedFolder({"sub/x.txt": (tmp_path / "blob", "sha256:00", 5)})
    again = MappedFolder.from_json(json.loads(json.dumps(folder.to_json())))
    assert again.files == folder.files
    assert again.read("sub/x.txt", 1, 3) == b"el"
    with pytest.raises(FileNotFoundError):
        again.read("other")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "", "."])
def test_a_local_folder_reads_nothing_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        LocalFolder(tmp_path / "inner").read(name)


def test_an_unfinished_file_never_appears(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x.safetensors", {"a": ("F32", (2,)), "b": ("F32", (1,))}) as writer:
        writer.write("a", b"\0" * 8)
        with pytest.raises(InvalidPatch, match="b"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "size"), [("a", 7), ("c", 8)])
def test_the_writer_refuses_what_was_not_planned(tmp_path: Path, name: str, size: int) -> None:
    with SafetensorsWriter(tmp_path / "x.safetensors", {"a": ("F32", (2,))}) as writer:
        with pytest.raises(InvalidPatch):
            writer.write(name, b"\0" * size)
        writer.write("a", b"\0" * 8)
        with pytest.raises(InvalidPatch):
            writer.write("a", b"\0" * 8)
        writer.finish()
        writer.abort()
    assert (tmp_path / "x.safetensors").exists()


def test_a_handle_on_memory_checks_its_size() -> None:
    assert TensorHandle.of_bytes("x", "BF16", (2, 2), bytes(8)).nbytes == 8
    with pytest.raises(InvalidPatch):
        TensorHandle.of_bytes("x", "F32", (2, 2), bytes(8))
