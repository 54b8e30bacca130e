"""Checks a JSON value against a JSON schema, in the few words of the language that our own schemas use.

The sentences are for people: where in the file, what was found, what is expected. Never imports anything by name.
Source: json-schema.org, draft 2020-12, "Validation".
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]

_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "object": ((dict,), "an object"),
    "array": ((list,), "a list"),
    "string": ((str,), "a text"),
    "number": ((int, float), "a number"),
    "integer": ((int,), "a whole number"),
    "boolean": ((bool,), "true or false"),
    "null": ((type(None),), "null"),
}

WORDS = frozenset(
    {
        *("type", "const", "enum", "minimum", "maximum", "maxLength", "pattern", "items", "minItems", "maxItems"),
        *("properties", "required", "additionalProperties", "minProperties", "propertyNames", "allOf", "if", "then"),
        *("$schema", "$id", "title", "description"),
    }
)
"""The words of the language that `problem` obeys, and those that only describe."""


def problem(value: Any, schema: Schema, where: str) -> str | None:
    """The first thing wrong with `value`, as a sentence that begins with `where`; None where nothing is."""
    return next(_problems(value, schema, where), None)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name][0])


def _problems(value: Any, schema: Schema, where: str) -> Iterator[str]:
    shown = str(value)[:100] if isinstance(value, dict | list) else repr(value)[:100]
    types = schema.get("type")
    if types is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            yield f"{where} is {shown}; {' or '.join(_TYPES[name][1] for name in names)} is expected"
            return
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices is not None and not any(value == one and type(value) is type(one) for one in choices):
        yield f"{where} is {shown}; {' or '.join(map(repr, choices))} is expected"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        low, high = schema.get("minimum", "any"), schema.get("maximum", "any")
        yield f"{where} is {shown}; a number from {low} to {high} is expected"
    if isinstance(value, str):
        yield from _text_problems(value, schema, where, shown)
    if isinstance(value, list):
        yield from _list_problems(value, schema, where)
    if isinstance(value, dict):
        yield from _object_problems(value, schema, where)
    for one in schema.get("allOf", ()):
        yield from _problems(value, one, where)
    if "if" in schema and problem(value, schema["if"], where) is None:
        yield from _problems(value, schema.get("then", {}), where)


def _text_problems(value: str, schema: Schema, where: str, shown: str) -> Iterator[str]:
    if len(value) > schema.get("maxLength", len(value)):
        yield f"{where} has {len(value)} characters; at most {schema['maxLength']} are read"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where} is {shown}; a text like {schema['pattern']} is expected"


def _list_problems(value: list[Any], schema: Schema, where: str) -> Iterator[str]:
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if not least <= len(value) <= most:
        yield f"{where} has {len(value)} entries; {least} to {schema.get('maxItems', 'any number')} are expected"
    for number, one in enumerate(value):
        yield from _problems(one, schema.get("items", {}), f"{where}[{number}]")


def _object_problems(value: dict[str, Any], schema: Schema, where: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    if len(value) < schema.get("minProperties", 0):
        yield f"{where} is missing or empty"
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} has no {name}"
    for name, one in value.items():
        here = f"{where}.{name[:100]}" if not where.endswith(": ") else f"{where}{name[:100]}"
        if "propertyNames" in schema:
            yield from _problems(name, schema["propertyNames"], f"a name in {where}")
        if name in known:
            yield from _problems(one, known[name], here)
        elif others is False:
            yield f"{where} has an unknown key {name[:100]!r}; known are {', '.join(sorted(known))}"
        else:
            yield from _problems(one, others, here)
