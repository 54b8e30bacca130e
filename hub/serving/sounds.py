"""Sound files as numbers, and numbers as such files: WAV alone, in PCM of 8 to 32 bits, its channels averaged."""

import io
import wave
from typing import Any

import numpy as np

from adapterhub.hub.errors import InvalidRequest

MAX_SECONDS = 600
"""Longest sound that is read or made."""


def samples(data: bytes | None, rate: int) -> Any:
    """The sound in a WAV file as float32 in [-1, 1], (samples,).

    rate: samples a second that the model takes. Raises InvalidRequest for what is no such file or of another rate.
    """
    if not data:
        raise InvalidRequest("inputs: a sound is expected, as a WAV file")
    try:
        with wave.open(io.BytesIO(data)) as file:
            found, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            if found != rate:
                raise InvalidRequest(f"inputs: {found} samples a second; the model takes {rate}, so resample it first")
            if file.getnframes() > MAX_SECONDS * rate:
                raise InvalidRequest(f"inputs: {file.getnframes() // rate} s; at most {MAX_SECONDS} s are read")
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise InvalidRequest(f"inputs: not a WAV file in PCM: {error}") from error
    whole = frames[: len(frames) // (width * channels) * width * channels]
    return _numbers(whole, width).reshape(-1, channels).mean(1).astype(np.float32)


def wav(sound: Any, rate: int) -> bytes:
    """A WAV file of 16 bits. sound: (samples,) in [-1, 1], what is beyond is cut; rate: samples a second."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def _numbers(frames: bytes, width: int) -> Any:
    """Samples in [-1, 1]; 8 bits are stored from 0 on, more bits around 0, 24 of them in three bytes."""
    if width == 1:
        return np.frombuffer(frames, np.uint8) / 128 - 1
    if width == 3:
        wide = np.zeros((len(frames) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2**31
    return np.frombuffer(frames, f"<i{width}") / 2 ** (8 * width - 1)
