"""The formats against the client that fixes them: what the hf_xet wheel sends is read, checked and rebuilt."""

import hashlib
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.rebuild import Xorb, checked_size
from adapterhub.storage.xet.shard import FileRecord, parse_shard
from adapterhub.storage.xet.xorb import ChunkTable
from tests.storage.xet.capture import Capture, capture
from tests.storage.xet.forge import check_xorb, joined


def contents() -> dict[str, bytes]:
    """Files of every shape that the client treats differently: sizes around its smallest chunk, and what compresses."""
    rng = np.random.default_rng(20_260)
    floats = rng.normal(scale=0.02, size=500_000).astype(np.float32)
    return {
        "twenty": b"a file of 20 bytes..",
        "shorter": rng.bytes(8191),
        "smallest": rng.bytes(8192),
        "random": rng.bytes(3_000_000),
        "text": "".join(topics.values()).encode(),
        "repeated": b"the same line, again and again\n" * 50_000,
        "float32": floats.tobytes(),
        "bfloat16": (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes(),
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    return capture(contents(), tmp_path_factory.mktemp("xet"))


def records(seen: Capture) -> dict[str, FileRecord]:
    """The file records of all shards, by file hash."""
    return {record.file_hash: record for shard in seen.shards for record in parse_shard(shard)}


def opener(seen: Capture, piece_bytes: int = 1 << 20) -> dict[str, Xorb]:
    """The client's xorbs, checked; each reads in pieces of `piece_bytes`."""

    def xorb(name: str, content: bytes) -> Xorb:
        table = ChunkTable(check_xorb(content, name))
        return Xorb(table, lambda a, b: (content[at : min(at + piece_bytes, b)] for at in range(a, b, piece_bytes)))

    return {name: xorb(name, content) for name, content in seen.xorbs.items()}


@pytest.mark.parametrize("name", contents())
def test_a_file_is_rebuilt_from_what_the_client_sent(seen: Capture, name: str) -> None:
    content = contents()[name]
    file_hash, sha256 = seen.files[name]
    record, xorbs = records(seen)[file_hash], opener(seen, piece_bytes=100_003)
    assert record.digest == f"sha256:{sha256}" == "sha256:" + hashlib.sha256(content).hexdigest()
    assert checked_size(record, xorbs.__getitem__) == record.claimed_bytes == len(content)
    assert joined(record, xorbs.__getitem__) == content


def test_the_client_uses_every_compression_scheme(seen: Capture) -> None:
    tables = {name: ChunkTable(check_xorb(content, name)) for name, content in seen.xorbs.items()}
    schemes = {
        seen.xorbs[name][chunk.offset + 4] for name, table in tables.items() for chunk in table.chunks(0, len(table))
    }
    assert schemes == {0, 1, 2}


def test_a_xorb_is_refused_under_another_name_and_with_any_byte_changed(seen: Capture) -> None:
    name, content = next(iter(seen.xorbs.items()))
    with pytest.raises(InvalidXet, match="announced as"):
        check_xorb(content, "0" * 64)
    for at in range(0, len(content), len(content) // 40):
        broken = bytearray(content)
        broken[at] ^= 0x10
        with pytest.raises(InvalidXet):
            check_xorb(bytes(broken), name)


def test_a_xorb_that_the_store_lost_the_end_of_is_noticed(seen: Capture) -> None:
    name = next(iter(seen.xorbs))
    whole = opener(seen)[name]
    torn = Xorb(whole.chunks, lambda start, end: whole.read(start, max(start, end - 1)))
    record = records(seen)[seen.files["random"][0]]
    with pytest.raises(InvalidXet, match="ends early"):
        joined(record, {**opener(seen), name: torn}.__getitem__)


@pytest.mark.slow
def test_a_file_larger_than_a_xorb_is_rebuilt(tmp_path: Path) -> None:
    content = hashlib.shake_128(b"incompressible").digest(70_000_000)
    seen = capture({"large": content}, tmp_path)
    assert len(seen.xorbs) == 2
    [record] = records(seen).values()
    assert joined(record, opener(seen).__getitem__) == content
