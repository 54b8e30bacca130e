from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.serving.text import Detokeniser, StopTexts


def decode_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def streamed(data: bytes) -> list[str]:
    detokeniser = Detokeniser(decode_bytes)
    return [*(detokeniser.push(token) for token in data), detokeniser.flush()]


@given(st.text())
def test_pieces_of_any_text_join_to_the_text_and_are_whole_characters(text: str) -> None:
    pieces = streamed(text.encode())
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces) or "\N{REPLACEMENT CHARACTER}" in text


@given(st.binary())
def test_pieces_of_bytes_that_are_no_text_join_to_the_decoding_of_the_whole(data: bytes) -> None:
    assert "".join(streamed(data)) == decode_bytes(data)


def test_a_stop_text_in_several_pieces_ends_the_answer_before_it() -> None:
    stops = StopTexts(["END", "\n\n"])
    assert [stops.push(piece) for piece in ("a EN", "ough E", "N", "D of")] == ["a ", "ENough ", "", ""]
    assert stops.is_found


def test_what_only_began_like_a_stop_text_is_given_at_the_end() -> None:
    stops = StopTexts(["END"])
    assert stops.push("the EN") == "the "
    assert stops.flush() == "EN"
    assert not stops.is_found


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stop_texts_nothing_is_held_back(stops: list[str]) -> None:
    assert StopTexts(stops).push("any text") == "any text"
