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


def whole(value: Any, where: str, *, least: int = 1, most: int = 65536) -> int:
    """`value` as an int. Raises InvalidPatch unless it is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise InvalidPatch(f"{where} is {value!r}; a whole number from {least} to {most} is expected")
    return value


_REPEATS = re.compile(r"[*+]|\{")


def read_pattern(value: Any, where: str) -> Mapping[str, float]:
    """A pattern whose keys are plain paths, or expressions that cannot take long to match. Raises InvalidPatch."""
    if not isinstance(value, dict):
        raise InvalidPatch(f"{where} is a {type(value).__name__}; an object is expected")
    expressions = [key for key in value if not _is_plain(key)]
    if len(expressions) > 32:
        raise InvalidPatch(
            f"{where}: {len(expressions)} keys are expressions, too complicated; name the modules instead"
        )
    for key in expressions:
        _check_expression(key, where)
    return {key: positive(number, f"{where}[{key[:80]!r}]") for key, number in value.items()}


def _check_expression(key: str, where: str) -> None:
    # A repeated group, or many repeats, can take exponential or high polynomial time on a hostile path.
    if len(key) > 256 or len(_REPEATS.findall(key)) > 2 or re.search(r"\)[*+{]", key):
        raise InvalidPatch(f"{where}: key {key[:80]!r} is too complicated; name the modules instead")
    try:
        re.compile(key)
    except re.error as error:
        raise InvalidPatch(f"{where}: key {key[:80]!r} is no regular expression: {error}") from error


def check_modules(value: Any, where: str) -> None:
    """Raises InvalidPatch unless `value` names modules as peft's target_modules do: a list, an expression, or None."""
    if isinstance(value, str):
        _check_expression(value, where)
    elif value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise InvalidPatch(f"{where} is {str(value)[:100]}; a list of names is expected")


def names_module(value: str | list[str] | None, module: str) -> bool:
    """Whether a checked list or expression names the module: an end of its path, or the whole of it.

    Source: peft `tuners/ia3/model.py`, _check_target_module_feedforward.
    """
    if isinstance(value, str):
        return len(module) <= 256 and re.fullmatch(value, module) is not None
    return any(module.endswith(one) for one in value or [])


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
