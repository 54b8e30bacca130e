"""Cards: the README.md of a repository, its front matter read as data, its text shown as safe HTML.

Front matter is a strict part of YAML 1.2: no aliases, tags, merge keys or duplicate keys, and only true, false, null
and numbers are anything but text, so that the language `no` stays a language.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import yaml

from adapterhub.hub.errors import InvalidCard
from adapterhub.hub.services.markdown import render
from adapterhub.hub.services.names import is_storable

__all__ = ["CARD_BYTES", "FILE", "READ_BYTES", "Card", "parse", "render", "validate"]

FILE = "README.md"
FRONT_MATTER_BYTES = 64 * 1024
CARD_BYTES = 512 * 1024
READ_BYTES = FRONT_MATTER_BYTES + CARD_BYTES
"""How much of a card is read; what lies beyond is not looked at."""

DEPTH = 24

LIST_FIELDS = ("base_model", "datasets", "language", "license", "tags", "metrics")
"""Fields that hold one text or a list of texts."""

TEXT_FIELDS = ("library_name", "pipeline_tag", "license_name", "license_link", "base_model_relation", "training_method")

RELATIONS = ("adapter", "finetune", "merge", "quantized", "ported")

_FENCED = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Card:
    """A card in its two parts. data: the front matter, {} without any; text: the markdown below it."""

    data: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    def texts(self, key: str) -> list[str]:
        """The texts under `key`: none, the one, or the list."""
        value = self.data.get(key)
        return [str(v) for v in (value if isinstance(value, list) else [value]) if v is not None]

    def text_of(self, key: str) -> str | None:
        """The first text under `key`, None where there is none."""
        return next(iter(self.texts(key)), None)


def parse(content: str | bytes) -> Card:
    """The card in `content`, its front matter checked.

    Raises InvalidCard, naming the line or the field, for text that is no UTF-8 or no mapping in the YAML we take, for
    front matter above 64 KiB and for a known field of the wrong type.
    """
    text = _decoded(content)
    fenced = _FENCED.match(text)
    if fenced is None:
        return Card({}, text)
    data = _mapping(fenced.group(1))
    _check_fields(data)
    return Card(data, text[fenced.end() :].lstrip("\r\n"))


def validate(content: str | bytes) -> list[str]:
    """What the author of a card should mend though it is accepted. Raises InvalidCard where it is not."""
    card = parse(content)
    warnings = []
    if not card.data:
        warnings.append("the card has no front matter; add licence, base_model and tags between two lines of ---")
    elif not card.texts("license"):
        warnings.append("no license is given; nobody may merge or share without one")
    for base in card.texts("base_model"):
        if base.startswith(("/", ".", "~")) or re.match(r"[A-Za-z]:\\", base):
            warnings.append(f"base_model {base!r} is a path of your machine; name the repository")
    relation = card.data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        warnings.append(f"base_model_relation {relation!r} is not known; one of {', '.join(RELATIONS)}")
    if len(card.text.encode()) > CARD_BYTES:
        warnings.append(f"the card's text is above {CARD_BYTES // 1024} KiB and will be shown as plain text")
    return warnings


def _decoded(content: str | bytes) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if error.start >= READ_BYTES - 4:  # the cut went through a character
            return content[: error.start].decode()
        raise InvalidCard(f"{FILE}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _mapping(front_matter: str) -> dict[str, Any]:
    if len(front_matter.encode()) > FRONT_MATTER_BYTES:
        raise InvalidCard(f"{FILE}: front matter is above {FRONT_MATTER_BYTES // 1024} KiB; move text below it")
    try:
        data = _document(yaml.parse(front_matter, Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 2}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise InvalidCard(f"{FILE}{line}: front matter is not YAML: {problem}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidCard(f"{FILE}: front matter is a {type(data).__name__}, not a mapping of keys to values")
    return data


def _document(events: Iterator[yaml.Event]) -> Any:
    value = None
    for event in events:
        if isinstance(event, yaml.NodeEvent):
            value = _value(event, events, 0)
    return value


def _value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
    """What `event` begins, its later events taken from `events`."""
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise _refused(event, "aliases and anchors are not accepted; write the value out")
    if getattr(event, "tag", None):
        raise _refused(event, f"the tag {event.tag} is not accepted")  # type: ignore[attr-defined]
    if depth > DEPTH:
        raise _refused(event, f"it is nested deeper than {DEPTH}")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_items(events, depth + 1))
    found: dict[str, Any] = {}
    for key_event in events:
        if isinstance(key_event, yaml.MappingEndEvent):
            break
        key = _key(key_event)
        if key in found:
            raise _refused(key_event, f"the key {key!r} stands there twice")
        found[key] = _value(next(events), events, depth + 1)
    return found


def _items(events: Iterator[yaml.Event], depth: int) -> Iterator[Any]:
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            return
        yield _value(event, events, depth)


def _key(event: yaml.Event) -> str:
    if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
        raise _refused(event, "a key is plain text")
    if not is_storable(event.value):
        raise _refused(event, "a key holds a NUL or half a character")
    if event.value == "<<":
        raise _refused(event, "merge keys (<<) are not accepted; write the keys out")
    return str(event.value)


def _scalar(event: yaml.ScalarEvent) -> Any:
    text = str(event.value)
    if not is_storable(text):
        raise _refused(event, "a text holds a NUL or half a character")
    if event.style is not None and event.style != "":
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) and isfinite(float(text)) else text


def _refused(event: yaml.Event, problem: str) -> InvalidCard:
    line = f" line {event.start_mark.line + 2}" if event.start_mark else ""
    return InvalidCard(f"{FILE}{line}: {problem}")


def _check_fields(data: Mapping[str, Any]) -> None:
    for key in LIST_FIELDS:
        values = data.get(key)
        if not _are_texts(values if isinstance(values, list) else [values]):
            raise InvalidCard(f"{FILE}: {key} is a text or a list of texts, found {_shown(values)}")
    for key in TEXT_FIELDS:
        if not _are_texts([data.get(key)]):
            raise InvalidCard(f"{FILE}: {key} is a text, found {_shown(data[key])}")
    if not isinstance(data.get("model-index") or [], list):
        raise InvalidCard(f"{FILE}: model-index is a list, found {_shown(data['model-index'])}")


def _are_texts(values: Sequence[Any]) -> bool:
    return all(v is None or (isinstance(v, str | int | float) and len(str(v)) <= 1000) for v in values)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
