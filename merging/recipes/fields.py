"""Parts of a recipe file, checked for their keys and types; messages say where in the file they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from adapterhub.merging.errors import RecipeFileError
from adapterhub.merging.recipes.documents import FILE, shown
from adapterhub.merging.recipes.mergekit import KNOWN

MAX_LAYERS = 10_000

_HINTS = {
    "revision": "a revision is part of the name: model: NAME@REVISION",
    "lora": "a LoRA is part of the name: model: NAME+LORA",
    "source_model": "the key is model",
}


def check_keys(value: Any, known: Sequence[str], where: str) -> None:
    """Raises RecipeFileError for what is no mapping, and for a key that is not known there."""
    if not isinstance(value, Mapping):
        raise RecipeFileError(where, f"is {shown(value)}; expected {', '.join(known)}")
    for key in value:
        if key in known:
            continue
        at = key if where == FILE else f"{where}.{key}"
        if key in KNOWN and "parameters" in known:
            raise RecipeFileError(at, "is a parameter; write it below parameters")
        raise RecipeFileError(at, f"no such key; {_HINTS.get(key) or nearest(key, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest to another, as a question, else all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(names) or 'none'}"


def list_of(value: Any, where: str) -> list[Any]:
    """The value as a list. Raises RecipeFileError."""
    if not isinstance(value, list):
        raise RecipeFileError(where, f"is {shown(value)}; expected a list")
    return value


def layers_of(value: Any, where: str) -> tuple[int, int]:
    """The first layer and one past the last. Raises RecipeFileError."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value)
    if not is_pair or not 0 <= value[0] < value[1] <= MAX_LAYERS:
        raise RecipeFileError(where, f"is {shown(value)}; expected [FIRST, END], one past the last layer taken")
    return value[0], value[1]


def word_of(value: Any, where: str) -> str:
    """The value as text, without spaces around it. Raises RecipeFileError."""
    if not isinstance(value, str) or not value.strip():
        raise RecipeFileError(where, f"is {shown(value)}; expected a name")
    return value.strip()
