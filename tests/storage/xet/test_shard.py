"""Shards: reading them, refusing them, and refusing files that their chunks do not make."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.storage.errors import InvalidXet
from adapterhub.storage.xet.rebuild import Xorb, checked_size, rebuild
from adapterhub.storage.xet.shard import MAX_SHARD_BYTES, FileRecord, Term, parse_shard
from adapterhub.storage.xet.xorb import ChunkTable
from tests.storage.xet.forge import END, HEADER, check_xorb, forged, joined, shard, term, wire_chunk, xorb_name

CHUNKS = [b"first chunk", b"second", b"third one", b"4"]
WIRE = b"".join(wire_chunk(chunk, scheme) for chunk, scheme in zip(CHUNKS, (0, 1, 2, 0), strict=True))
TABLE = ChunkTable(check_xorb(WIRE, xorb_name(CHUNKS)))


def open_xorb(name: str) -> Xorb:
    """The one xorb that exists here."""
    if name != xorb_name(CHUNKS):
        raise InvalidXet(f"no xorb {name}")
    return Xorb(TABLE, lambda start, end: iter([WIRE[start:end]]))


def only(content: bytes) -> FileRecord:
    [record] = parse_shard(content)
    return record


def test_a_file_may_use_chunks_in_any_order_and_again() -> None:
    record = only(shard([term(CHUNKS, 2, 4), term(CHUNKS, 0, 2), term(CHUNKS, 0, 1)], CHUNKS))
    assert record.digest == "sha256:" + "ab" * 32
    assert joined(record, open_xorb) == b"third one4first chunksecondfirst chunk"
    assert checked_size(record, open_xorb) == record.claimed_bytes == 38


def test_the_sha256_may_be_left_out() -> None:
    assert only(shard([term(CHUNKS, 0, 4)], CHUNKS, flags=1 << 31)).digest is None


def test_a_shard_without_files_has_none() -> None:
    assert parse_shard(HEADER + END + END) == []


TRUE = term(CHUNKS, 1, 3)
FORGERIES: dict[str, tuple[Term, str]] = {
    "another range hash": (forged(TRUE, range_hash=bytes(32)), "range hash"),
    "a range past the end": (forged(TRUE, end=5), "which has 4"),
    "another length": (forged(TRUE, raw_bytes=16), "not 16 bytes"),
    "a xorb of somebody else": (forged(TRUE, xorb_hash="0" * 64), "no xorb"),
}


@pytest.mark.parametrize(("false", "complaint"), FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("use", [checked_size, lambda record, xorbs: list(rebuild(record, xorbs))])
def test_a_forged_term_is_refused(use: Callable[..., object], false: Term, complaint: str) -> None:
    with pytest.raises(InvalidXet, match=complaint):
        use(only(shard([term(CHUNKS, 0, 1), false], CHUNKS)), open_xorb)


def test_a_forged_file_hash_is_refused() -> None:
    with pytest.raises(InvalidXet, match="announced as " + "1" * 64):
        checked_size(only(shard([TRUE], CHUNKS, name="1" * 64)), open_xorb)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "ends before row 1"),
        (HEADER[:-1], "not whole rows"),
        (b"X" + HEADER[1:] + END + END, "no header"),
        (HEADER[:40] + b"\1" + bytes(7) + END + END, "without a footer"),
        (HEADER + END, "ends before"),
        (HEADER + END + END + bytes(48), "48 bytes after the end"),
        (HEADER + bytes(48) + END + END, "range hashes are needed"),
        (shard([TRUE], CHUNKS, flags=1 << 30), "range hashes are needed"),
        (shard([TRUE], CHUNKS, flags=7 << 29), "flags"),
        (shard([forged(TRUE, start=2, end=2)], CHUNKS, name="1" * 64), "in chunks 2-2"),
        (shard([forged(TRUE, end=8193)], CHUNKS), "8193"),
        (shard([forged(TRUE, raw_bytes=0)], CHUNKS), "0 bytes"),
        (HEADER + b"\1" * 32 + (1 << 31).to_bytes(4, "little") + b"\xff" * 4 + bytes(8) + END + END, "ends before"),
        (HEADER + END + b"\1" * 32 + bytes(16) + END, "0 chunks"),
        (bytes(MAX_SHARD_BYTES + 32), "more than"),
    ],
)
def test_what_is_not_exactly_a_shard_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(InvalidXet, match=complaint):
        parse_shard(content)


@settings(max_examples=300)
@given(st.binary(max_size=48 * 6), st.integers(0, 5))
def test_noise_raises_nothing_but_invalid_xet(noise: bytes, cut: int) -> None:
    for content in (noise, HEADER + noise[: 48 * cut] + END):
        try:
            for record in parse_shard(content):
                checked_size(record, open_xorb)
        except InvalidXet:
            continue


@settings(max_examples=300)
@given(st.data())
def test_a_true_shard_with_a_byte_changed_never_yields_more_than_it_may(data: st.DataObject) -> None:
    content = bytearray(shard([term(CHUNKS, 0, 4)], CHUNKS))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        for record in parse_shard(bytes(content)):
            assert checked_size(record, open_xorb) == sum(map(len, CHUNKS))
    except InvalidXet:
        return
