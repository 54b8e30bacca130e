"""Turns tokens into text as they come: whole characters only, and nothing that may still become a stop text."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokeniser:
    """Text of a growing list of tokens. The pieces joined are the decoding of the whole.

    Each piece is the difference between two decodings of a short window, as a token's text depends on its neighbours:
    a space before it, bytes of one character in several tokens.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._window = 0
        self._told = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._pending()
        if text.endswith(_INCOMPLETE):
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        text = self._pending()
        self._advance()
        return text

    def _pending(self) -> str:
        told = self._decode(self._tokens[self._window : self._told])
        return self._decode(self._tokens[self._window :])[len(told) :]

    def _advance(self) -> None:
        self._window, self._told = self._told, len(self._tokens)


class StopTexts:
    """Holds back what may be the beginning of a stop text, and ends at the first that is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to belong to the answer and was not given before."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_found = True
            given, self._held = self._held[: min(found)], ""
            return given
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        given, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return given

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop text ended."""
        given, self._held = self._held, ""
        return given


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
