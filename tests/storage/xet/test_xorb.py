"""Xorbs: what is accepted, and that nothing else is."""

from itertools import pairwise

import lz4.frame
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.storage.blobs import digest_by
from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.hashes import chunk_hash, from_text, merkle_root, to_text
from adapterhub.storage.xet.xorb import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_RAW_BYTES,
    MAX_WIRE_BYTES,
    ChunkTable,
    XorbCheck,
    unpack,
)
from tests.storage.xet.forge import check_xorb, stored_name, wire_chunk, xorb_name


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.sampled_from([0, 1, 2])), min_size=1, max_size=30))
def test_every_scheme_unpacks_to_what_was_packed(parts: list[tuple[bytes, int]]) -> None:
    content = b"".join(wire_chunk(raw, scheme) for raw, scheme in parts)
    table = ChunkTable(check_xorb(content, xorb_name([raw for raw, _ in parts])))
    assert len(table) == len(parts)
    for (raw, _), chunk in zip(parts, table.chunks(0, len(table)), strict=True):
        assert unpack(content[chunk.offset : chunk.offset + chunk.wire_bytes]) == raw
        assert chunk.raw_bytes == len(raw)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=10), st.data())
def test_a_xorb_may_arrive_cut_anywhere(chunks: list[bytes], data: st.DataObject) -> None:
    content = b"".join(wire_chunk(raw, number % 3) for number, raw in enumerate(chunks))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)))))
    check = XorbCheck()
    for start, end in pairwise([0, *cuts, len(content)]):
        check.update(content[start:end])
    assert check.finish(from_text(xorb_name(chunks))) == check_xorb(content, xorb_name(chunks))
    assert digest_by(check) == stored_name(content)


def test_a_stored_name_is_made_of_headers_and_hashes() -> None:
    plain, packed = wire_chunk(b"as it is"), wire_chunk(bytes(1000), 1)
    hashes = plain[:8] + chunk_hash(b"as it is") + packed[:8] + blake3(packed[8:]).digest()
    assert stored_name(plain + packed) == "xorb:" + blake3(hashes).hexdigest()


def test_every_run_of_bytes_has_a_stored_name_of_its_own() -> None:
    raw = bytes(range(256)) * 100
    again = lz4.frame.compress(raw, compression_level=9, content_checksum=True)
    header = b"\0" + len(again).to_bytes(3, "little") + b"\1" + len(raw).to_bytes(3, "little")
    one, other = wire_chunk(raw, 1), header + again
    assert check_xorb(one, xorb_name([raw])) != b"" != check_xorb(other, xorb_name([raw]))
    runs = [one, other, wire_chunk(raw), wire_chunk(raw, 2), one + one, one + one[:7], one + one[:-1], one[:-1], b""]
    assert len({stored_name(run) for run in runs}) == len(runs)


def test_a_frame_that_unpacks_to_more_than_it_says_is_stopped() -> None:
    bomb = lz4.frame.compress(bytes(64 << 20))
    wire = b"\0" + len(bomb).to_bytes(3, "little") + b"\1" + (1000).to_bytes(3, "little") + bomb
    with pytest.raises(InvalidXet, match=r"out of bounds|does not end"):
        unpack(wire)
    with pytest.raises(InvalidXet, match="does not end"):
        unpack(wire_chunk(bytes(100_000), 1, claimed_bytes=1000))


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (wire_chunk(b"x" * 10, 0, claimed_bytes=11), "says 11 bytes and holds 10"),
        (wire_chunk(b"x" * 10, 1, claimed_bytes=11), "says 11 bytes and holds 10"),
        (wire_chunk(b"x" * 10, 2, claimed_bytes=9), "says 9 bytes and holds 10"),
        (wire_chunk(b"x" * 10)[:-1], "ends inside"),
        (wire_chunk(b"x" * 10)[:5], "no chunk header"),
        (b"XETBLOB" + bytes(60), "no chunk header of version 0"),
        (wire_chunk(b"x" * 10, 1)[:-4] + b"\0\0\0\1", "LZ4"),
        (wire_chunk(b"x" * 10)[:4] + b"\3" + wire_chunk(b"x" * 10)[5:], "unknown compression scheme 3"),
        (wire_chunk(b""), "out of bounds"),
        (wire_chunk(bytes(MAX_CHUNK_BYTES + 1)), "out of bounds"),
        (wire_chunk(b"x" * 10, 1) + b"junk", "no chunk header"),
    ],
)
def test_a_chunk_that_is_not_what_it_says_is_refused(wire: bytes, complaint: str) -> None:
    with pytest.raises(InvalidXet, match=complaint):
        check_xorb(wire, "0" * 64)


def test_a_largest_chunk_is_taken() -> None:
    raw = bytes(MAX_CHUNK_BYTES)
    assert len(check_xorb(wire_chunk(raw, 1), xorb_name([raw]))) == 44


def test_headers_may_bring_a_full_xorb_over_64_mib() -> None:
    raw = bytes(MAX_CHUNK_BYTES)
    content = wire_chunk(raw) * (MAX_RAW_BYTES // MAX_CHUNK_BYTES)
    assert MAX_RAW_BYTES < len(content) <= MAX_WIRE_BYTES
    table = ChunkTable(check_xorb(content, to_text(merkle_root([(chunk_hash(raw), len(raw))] * 512))))
    assert sum(chunk.raw_bytes for chunk in table.chunks(0, 512)) == MAX_RAW_BYTES


def test_more_chunks_or_bytes_than_a_xorb_may_have_are_refused() -> None:
    with pytest.raises(InvalidXet, match="more than 8192 chunks"):
        check_xorb(wire_chunk(b"x") * (MAX_CHUNKS + 1), "0" * 64)
    with pytest.raises(InvalidXet, match="more than"):
        check_xorb(wire_chunk(bytes(MAX_CHUNK_BYTES), 1) * 513, "0" * 64)


def test_an_empty_xorb_is_refused() -> None:
    with pytest.raises(InvalidXet, match="without chunks"):
        check_xorb(b"", "0" * 64)


def test_a_chunk_table_that_was_cut_is_refused() -> None:
    rows = check_xorb(wire_chunk(b"x"), xorb_name([b"x"]))
    for broken in (b"", rows[:-1], rows + b"\0"):
        with pytest.raises(InvalidXet, match="rows have 44"):
            ChunkTable(broken)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_invalid_xet(noise: bytes) -> None:
    with pytest.raises(InvalidXet):
        check_xorb(noise, "0" * 64)
