"""Recipe files read as plain values: safe YAML, small and shallow, every key once, with line numbers in messages.

No tag makes an object. Depth, events and aliases are counted while the text is read, so neither a deep file nor one
whose aliases name aliases costs more than its own length.
"""

from collections.abc import Hashable
from typing import Any

import yaml

from adapterhub.merging.errors import RecipeFileError, RecipeTooLarge

FILE = "recipe file"
"""How messages call the file as a whole."""

MAX_CHARACTERS = 131_072
MAX_DEPTH = 16
MAX_EVENTS = 20_000
MAX_ALIASES = 64
"""Aliases are expanded where they stand, each at most as large as the file."""


def read_document(text: str) -> dict[str, Any]:
    """The one mapping of a YAML text, keys in its order; of strings, numbers, truth values, None, lists and mappings.

    Raises RecipeTooLarge past the limits, and RecipeFileError for what is no YAML, no mapping, or several documents,
    and for a key given twice or an alias inside of itself.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeTooLarge(f"the recipe file has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    try:
        _check_size(text)
        found = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        raise RecipeFileError(FILE, _explained(error)) from error
    if len(found) > 1:
        raise RecipeFileError(
            FILE, f"holds {len(found)} documents, as mergekit-multi reads them; merge each on its own, the first first"
        )
    if not found or not isinstance(found[0], dict):
        what = "nothing" if not found or found[0] is None else f"a {type(found[0]).__name__}"
        raise RecipeFileError(FILE, f"holds {what}; expected keys such as merge_method and models")
    document: dict[str, Any] = found[0]
    return document


def _check_size(text: str) -> None:
    depth = aliases = 0
    for number, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > MAX_DEPTH:
            raise RecipeTooLarge(f"the recipe file is nested deeper than {MAX_DEPTH}")
        if number > MAX_EVENTS:
            raise RecipeTooLarge(f"the recipe file has more than {MAX_EVENTS} parts")
        if aliases > MAX_ALIASES:
            raise RecipeTooLarge(f"the recipe file has more than {MAX_ALIASES} aliases")


class _Loader(yaml.SafeLoader):
    """Loads plain values alone. An alias stands for a value without aliases of its own, so that none grows."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._with_aliases: set[str] = set()
        self._open: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open or event.anchor in self._with_aliases:
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"the alias {event.anchor!r} stands for what has aliases itself",
                    event.start_mark,  # type: ignore[arg-type]
                )
            self._with_aliases.update(self._open)
            return super().compose_node(parent, index)
        if event.anchor is None:
            return super().compose_node(parent, index)
        self._open.append(event.anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key is plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PLAIN = ("str", "int", "float", "bool", "null", "seq", "map")
for _tag in set(yaml.SafeLoader.yaml_constructors) - {f"tag:yaml.org,2002:{one}" for one in _PLAIN}:
    if _tag is not None:
        _Loader.add_constructor(_tag, _Loader.construct_undefined)  # type: ignore[type-var]
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)  # type: ignore[type-var]


def _explained(error: yaml.YAMLError) -> str:
    """The parser's words on one line, and where."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f", in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{error.problem or error.context}{where}"


def shown(value: Any) -> str:
    """A value as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
