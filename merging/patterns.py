"""Numbers by module path, as peft's rank_pattern and alpha_pattern write them: paths or regular expressions as keys."""

import re
from collections.abc import Mapping
from typing import Any

from adapterhub.merging.errors import InvalidPatch


def positive(value: Any, where: str) -> float:
    """`value` as a float. Raises InvalidPatch unless it is a number above 0 and below 1e9."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidPatch(f"{where} is {value!r}; a number above 0 is expected")
    return float(value)


_REPEATS = re.compile(r"[*+]|\{")


def read_pattern(value: Any, where: str) -> Mapping[str, float]:
    """A pattern whose keys are plain paths, or expressions that cannot take long to match. Raises InvalidPatch."""
    if not isinstance(value, dict):
        raise InvalidPatch(f"{where} is a {type(value).__name__}; an object is expected")
    expressions = [key for key in value if not _is_plain(key)]
    for key in expressions:
        # A repeated group, or many repeats, can take exponential or high polynomial time on a hostile path.
        if len(key) > 256 or len(_REPEATS.findall(key)) > 2 or re.search(r"\)[*+{]", key) or len(expressions) > 32:
            raise InvalidPatch(f"{where}: key {key[:80]!r} is too complicated; name the modules instead")
        try:
            re.compile(key)
        except re.error as error:
            raise InvalidPatch(f"{where}: key {key[:80]!r} is no regular expression: {error}") from error
    return {key: positive(number, f"{where}[{key[:80]!r}]") for key, number in value.items()}


def _is_plain(key: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_.\-]+", key) is not None


def matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first key that matches the end of the module's path, at a dot, else the default.

    Source: peft `tuners/tuners_utils.py`, get_pattern_key: `(.*\\.)?(key)$`.
    """
    for key, value in pattern.items():
        if module == key or module.endswith("." + key):
            return value
        if not _is_plain(key) and len(module) <= 256 and re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
