"""The pieces of a sentencepiece model, read as the few bytes of protocol buffers that they are.

Only their texts and order are read, which are the tokens and ids of Llama's and Mistral's first tokenizers and of
Gemma's. Nothing is executed and no library is needed.
Source: github.com/google/sentencepiece, `sentencepiece_model.proto`: ModelProto.pieces = 1, SentencePiece.piece = 1.
"""

from collections.abc import Iterator

from adapterhub.merging.errors import InvalidPatch

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _PIECE = 1, 1


def pieces(raw: bytes, file: str) -> list[str]:
    """The model's pieces in the order of their ids. Raises InvalidPatch for a file that is no such model."""
    try:
        found = [_piece(value) for number, value in _fields(raw) if number == _PIECES and isinstance(value, bytes)]
    except (ValueError, IndexError) as error:
        raise InvalidPatch(f"{file}: is no sentencepiece model: {error}") from error
    if not found:
        raise InvalidPatch(f"{file}: is no sentencepiece model, as it has no pieces")
    return found


def _piece(raw: bytes) -> str:
    texts = [value for number, value in _fields(raw) if number == _PIECE and isinstance(value, bytes)]
    if len(texts) != 1:
        raise ValueError("a piece without its text")
    return texts[0].decode("utf-8")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message. Raises ValueError or IndexError for what is none."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(raw, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if size > len(raw) - at:
            raise ValueError("a field past the end")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
