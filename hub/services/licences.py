"""The licence of what was made from several things: one that all share, or all of them named."""

from collections.abc import Iterable

UNKNOWN = "unknown"


def join(licences: Iterable[str | None]) -> list[str]:
    """The distinct licences, sorted; "unknown" stands for an input that names none."""
    return sorted({licence or UNKNOWN for licence in licences})


def front_matter(joined: list[str]) -> str:
    """Lines of a card's front matter for `join`'s result.

    A single licence is stated as such. Several cannot be one identifier: the Hub's "other" is, with their names beside.
    """
    if len(joined) == 1:
        return f"license: {_quoted(joined[0])}\n"
    return f"license: other\nlicense_name: {_quoted(' AND '.join(joined))}\n"


def stated(card: str, joined: list[str]) -> str:
    """A card that begins with front matter, now stating `join`'s result in it."""
    return card.replace("---\n", "---\n" + front_matter(joined), 1)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
