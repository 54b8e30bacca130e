"""Times as huggingface_hub parses them."""

from datetime import datetime


def timestamp(at: datetime) -> str:
    """`at`, a time in UTC, with milliseconds and a Z."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
