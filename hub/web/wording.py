"""How the pages write numbers, times and values: the filters of the templates."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from adapterhub.merging.pickle_names import is_pickle


def bytes_short(count: int | None) -> str:
    """`count` bytes in the largest decimal unit that keeps it at or above one: "1.3 MB"."""
    size = float(count or 0)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def count_short(count: int | None) -> str:
    """`count` with K, M or B: "8.4M"."""
    number = float(count or 0)
    for unit in ("", "K", "M"):
        if number < 1000:
            return f"{number:.0f}{unit}" if not unit or number >= 100 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}B"


def ago(when: str | datetime | None) -> str:
    """How long ago `when` (ISO 8601 or datetime, UTC) was, in the largest sensible unit: "3 hours ago"."""
    if when is None:
        return "at an unknown time"
    time = datetime.fromisoformat(when) if isinstance(when, str) else when
    seconds = (datetime.now(UTC) - time).total_seconds()
    for unit, length in (("year", 31_557_600), ("month", 2_629_800), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number != 1 else ''} ago"
    return "just now"


def seconds_short(seconds: float) -> str:
    """A length of time in the largest unit that keeps it at or above one: "less than a second", "3 s", "2.5 hours"."""
    if seconds < 1:
        return "less than a second"
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def shorten(text: str, length: int) -> str:
    """`text`, its middle replaced by "…" where it is longer than `length` characters."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def plain(value: Any) -> str:
    """A fact's value in words: lists with commas, mappings as "key value", booleans as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(item) for item in value)
    return str(value)


def urlencode_all(text: str) -> str:
    """`text` quoted for a query or one path segment; "/" too."""
    return quote(text, safe="")


FILTERS = {
    f.__name__: f for f in (bytes_short, count_short, seconds_short, ago, shorten, plain, urlencode_all, is_pickle)
}
