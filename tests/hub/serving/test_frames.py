import io
import struct

import pytest

from adapterhub.hub.serving import frames


def test_a_message_and_its_attachment_come_back() -> None:
    stream = io.BytesIO(frames.pack({"id": 1, "text": "naïve \ud800"}, b"\0\xff") + frames.pack({"id": 2}))
    assert frames.read(stream) == ({"id": 1, "text": "naïve \ud800"}, b"\0\xff")
    assert frames.read(stream) == ({"id": 2}, b"")
    assert frames.read(stream) is None


def test_a_stream_that_ends_in_a_frame_ends_there() -> None:
    whole = frames.pack({"id": 1}, b"attached")
    for length in range(len(whole)):
        assert frames.read(io.BytesIO(whole[:length])) is None


def test_a_frame_beyond_the_limit_is_not_read() -> None:
    with pytest.raises(ValueError, match="at most"):
        frames.read(io.BytesIO(struct.pack(">II", frames.MAX_FRAME_BYTES, 1)))
