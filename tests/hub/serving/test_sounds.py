"""WAV files as numbers: of every width, and what is refused."""

import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.sounds import samples


def wav(frames: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(frames)
    return file.getvalue()


@given(st.sampled_from([1, 2, 3, 4]), st.lists(st.floats(-1, 0.99), min_size=1, max_size=20))
def test_numbers_of_every_width_come_back_within_one_step(width: int, wanted: list[float]) -> None:
    steps = 2 ** (8 * width - 1)
    whole = [int(np.floor(one * steps)) for one in wanted]
    if width == 1:
        frames = bytes(one + 128 for one in whole)
    else:
        frames = b"".join(one.to_bytes(width, "little", signed=True) for one in whole)
    found = samples(wav(frames, width=width), 8000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1 / steps + 1e-7)


def test_channels_are_averaged() -> None:
    frames = np.array([[1000, 3000], [-200, 200]], "<i2").tobytes()
    np.testing.assert_allclose(samples(wav(frames, channels=2), 8000), [2000 / 32768, 0])


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "a sound is expected"), (b"ID3 no wave", "not a WAV"), (wav(b"ab", rate=44100), "44100 samples a second")],
)
def test_what_is_no_such_file_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        samples(data, 8000)
