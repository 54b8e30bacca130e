"""The Range header: which bytes of a file a client asks for."""

import re

from adapterhub.hub.errors import InvalidRange

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The half-open range [start, end) that `header` asks for, None for the whole file.

    Only one range is served. Several ranges, other units and text that is no range are ignored, as RFC 9110 section
    14.2 allows, so that they cost one plain answer and no more. An end past the file is cut. Raises InvalidRange when
    the range starts at or past the end.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start = int(first)
        end = min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= size_bytes:
        raise InvalidRange(match.group(), size_bytes)
    return start, end
