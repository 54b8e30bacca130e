"""What two canonical recipes differ in: inputs, weights, methods, parameters, and what the result shall be.

Reads canonical JSON, whoever wrote it; `merging/recipes/canonical.py` has its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from adapterhub.merging.recipes.values import schedule

Json = Mapping[str, Any]

_PART = frozenset({"weight", "schedules", "input", "delta", "method", "parameters", "inputs", "together"})
_WHOLE = frozenset({"format", "format_version", "inputs", "base", "sum", "stack", "compose"})


@dataclass(frozen=True)
class Change:
    """One difference. what: "input", "base", "weight", "method", "parameter", "part" or "setting".

    of: the thing that differs, such as "org/base" or "ties.density"; place: the method whose input it is, "" for the
    sum itself. before, after: JSON values, None where it is only in the other.
    """

    what: str
    of: str
    before: Any
    after: Any
    place: str = ""

    def __str__(self) -> str:
        word = {"input": "input ", "weight": "weight of "}.get(self.what, "")
        subject = f"{word}{self.of}" + (f", in {self.place}" if self.place else "")
        if self.before is None or self.after is None:
            deed, value = ("added", self.after) if self.before is None else ("removed", self.before)
            return f"{subject}: {deed}{self._value(value)}"
        if self.what == "input":
            return f"{subject}: moved from {_short(self.before)} to {_short(self.after)}"
        return f"{subject}: {_told(self.before)}, now {_told(self.after)}"

    def _value(self, value: Any) -> str:
        if self.what == "input":
            return f" at {_short(value)}"
        return f" with the weight {_told(value)}" if self.what == "part" else f", {_told(value)}"


def differences(before: Json, after: Json) -> list[Change]:
    """Every difference between two canonical recipes, inputs first; [] for equal ones."""
    left, right = _names(before, after), _names(after, before)
    base = left[before["base"]], right[after["base"]]
    return [
        *_inputs(dict(zip(left, before["inputs"], strict=True)), dict(zip(right, after["inputs"], strict=True))),
        *([Change("base", "base", *base)] if base[0] != base[1] else []),
        *_Sums(left, right).parts(before["sum"], after["sum"], ""),
        *_Sums(left, right).slices(before.get("stack", ()), after.get("stack", ()), "slice"),
        *_Sums(left, right).compositions(before.get("compose") or {}, after.get("compose") or {}),
        *_settings(_spoken(before, left), _spoken(after, right), _WHOLE, ""),
    ]


def as_json(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The differences as JSON, each with its sentence."""
    return [asdict(one) | {"text": str(one)} for one in changes]


def _inputs(before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[Change]:
    """Inputs added, removed, and moved to another commit or changed in their bytes."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        commits = _commit(old), _commit(new)
        if commits[0] != commits[1]:
            yield Change("input", name, *commits)
        elif old and new and old["digest"] != new["digest"]:
            yield Change("input", name, old["digest"], new["digest"])


def _settings(before: Json, after: Json, known: frozenset[str], owner: str, place: str = "") -> Iterator[Change]:
    """Whatever else a recipe or a part of it says: dtype, form, and what later versions add; groups by member."""
    for key in sorted((before.keys() | after.keys()) - known):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping | None) and isinstance(new, Mapping | None):
            yield from _settings(old or {}, new or {}, frozenset(), f"{owner}{key}.", place)
        else:
            yield Change("setting", owner + key, _or_default(old), _or_default(new), place)


def _spoken(recipe: Json, names: Sequence[str]) -> Json:
    """The recipe with inputs named in its settings, where canonical ones have numbers and digests."""
    found = dict(recipe)
    heads, tokenizer = found.get("heads"), found.get("tokenizer")
    if isinstance(heads, Mapping):
        by_digest = {one["digest"]: name for one, name in zip(recipe["inputs"], names, strict=True)}
        ((choice, digest),) = heads.items()
        found["heads"] = f"{choice}:{by_digest.get(digest, _short(digest))}"
    if tokenizer is not None:
        rows = {token: row | {"model": _name_at(row["model"], names)} for token, row in tokenizer["tokens"].items()}
        found["tokenizer"] = tokenizer | {"source": _name_at(tokenizer["source"], names), "tokens": rows}
    return found


def _name_at(number: int | str | None, names: Sequence[str]) -> str | None:
    return names[number] if isinstance(number, int) else number


@dataclass(frozen=True)
class _Sums:
    """Compares sums. left, right: what each input is called, by its number."""

    left: Sequence[str]
    right: Sequence[str]

    def parts(self, before: Sequence[Json], after: Sequence[Json], place: str) -> Iterator[Change]:
        """The differences of two sums: equal parts are matched first, then methods of one name, then of any."""
        old = [(_label(part, self.left), part) for part in before]
        new = [(_label(part, self.right), part) for part in after]
        for same in (_are_equal, _are_one_method, _are_methods):
            for pair in _matched(old, new, same):
                yield from self._pair(*pair, place)
        yield from (Change("part", label, _weight(part), None, place) for label, part in old)
        yield from (Change("part", label, None, _weight(part), place) for label, part in new)

    def compositions(self, before: Json, after: Json) -> Iterator[Change]:
        """The differences of what composes models while they decode, member by member."""
        name = after.get("operator")
        if before.get("operator") != name:
            yield Change("method", "operator", before.get("operator"), name)
        elif name is not None:
            yield from _parameters(name, before["parameters"], after["parameters"], "")
        old, new = before.get("members", ()), after.get("members", ())
        for number, (one, other) in enumerate(zip(old, new, strict=False), 1):
            if one["weight"] != other["weight"]:
                yield Change("weight", other["role"], one["weight"], other["weight"], f"member {number}")
        yield from self.slices(old, new, "member")

    def slices(self, before: Sequence[Json], after: Sequence[Json], word: str) -> Iterator[Change]:
        """The differences of sums on bases of their own, one by one; the bases of those that only one has."""
        for number, (old, new) in enumerate(zip_longest(before, after), 1):
            place = f"{word} {number}"
            bases = (None if old is None else self.left[old["base"]], None if new is None else self.right[new["base"]])
            if bases[0] != bases[1] and (number > 1 or None in bases):  # the first slice's is the recipe's
                yield Change("base", "base", *bases, place)
            if old is not None and new is not None:
                yield from self.parts(old["sum"], new["sum"], place)

    def _pair(self, label: str, old: Json, new: Json, place: str) -> Iterator[Change]:
        if _weight(old) != _weight(new):
            yield Change("weight", label, _weight(old), _weight(new), place)
        if "method" in old:
            yield from self._methods(old, new, place)
        yield from _settings(old, new, _PART, f"{label}.", place)

    def _methods(self, old: Json, new: Json, place: str) -> Iterator[Change]:
        name, values, fresh = new["method"], old["parameters"], new["parameters"]
        if old["method"] != name:
            yield Change("method", "method", old["method"], name, place)
            # what only one of two methods has is no change of a value
            shared = values.keys() & fresh.keys()
            values, fresh = ({key: one[key] for key in shared} for one in (values, fresh))
        yield from _parameters(name, values, fresh, place)
        inner = f"{place}, {name}" if place else name
        yield from self.parts(_alone(old["inputs"]), _alone(new["inputs"]), inner)


def _parameters(owner: str, before: Json, after: Json, place: str) -> Iterator[Change]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield Change("parameter", f"{owner}.{key}", _value(before.get(key)), _value(after.get(key)), place)


Labelled = tuple[str, Json]


def _matched(
    old: list[Labelled], new: list[Labelled], same: Callable[[Labelled, Labelled], bool]
) -> Iterator[tuple[str, Json, Json]]:
    """Pairs that are the same in that sense, taken out of both lists."""
    for left in list(old):
        right = next((one for one in new if same(left, one)), None)
        if right is not None:
            old.remove(left)
            new.remove(right)
            yield right[0], left[1], right[1]


def _are_equal(left: Labelled, right: Labelled) -> bool:
    return left[0] == right[0]


def _are_one_method(left: Labelled, right: Labelled) -> bool:
    return "method" in left[1] and left[1]["method"] == right[1].get("method")


def _are_methods(left: Labelled, right: Labelled) -> bool:
    return "method" in left[1] and "method" in right[1]


def _alone(inputs: Sequence[Json]) -> list[Json]:
    """The inputs of a method as parts: the one thing that an input is, or the sum that it is, with its weight."""
    parts: list[Json] = []
    for one in inputs:
        rest = {key: value for key, value in one.items() if key != "sum"}
        is_one = len(one["sum"]) == 1 and one["sum"][0]["weight"] == 1.0
        parts.append({**(one["sum"][0] if is_one else {"together": one["sum"]}), **rest})
    return parts


def _weight(part: Json) -> float | str:
    """The number before a part; with its schedules the text that an expression has there."""
    schedules = [str(_value(one)) for one in part.get("schedules", ())]
    if not schedules:
        return float(part["weight"])
    return "*".join([*([_told(part["weight"])] if part["weight"] != 1 else []), *schedules])


def _value(value: Any) -> Any:
    """A parameter's value; of one that differs from tensor to tensor the text that an expression has."""
    return str(schedule(value)) if isinstance(value, list) else value


def _label(part: Json, names: Sequence[str]) -> str:
    """What a part is called in sentences: the input's name, or the expression that stands there."""
    if "input" in part:
        return names[part["input"]]
    if "delta" in part:
        model, base = (names[number] for number in part["delta"])
        return f"delta({model}, {base})"
    if "together" in part:
        return "(" + " + ".join(f"{_told(_weight(one))}*{_label(one, names)}" for one in part["together"]) + ")"
    inner = (_label(one, names) for one in _alone(part["inputs"]))
    return f"{part['method']}({', '.join(inner)})"


def _names(recipe: Json, other: Json) -> list[str]:
    """What each input is called: without its commit, unless either recipe has two commits of it."""
    here, there = ([_name(one) for one in each["inputs"]] for each in (recipe, other))
    return [
        name if max(here.count(name), there.count(name)) == 1 else f"{name}@{_short(str(_commit(one)))}"
        for name, one in zip(here, recipe["inputs"], strict=True)
    ]


def _name(one: Json) -> str:
    name = str(one["name"]).partition("@")[0]
    layers = f"[{':'.join(map(str, one['layers']))}]" if one.get("layers") else ""
    return (f"{name}/{one['path']}" if one["path"] else name) + layers


def _commit(one: Json | None) -> str | None:
    """The commit of an input, its digest where it has none; None for no input."""
    if one is None:
        return None
    return str(one["name"]).partition("@")[2] or str(one["digest"])


def _or_default(value: Any) -> Any:
    return "default" if value is None else value


def _short(commit: str) -> str:
    return commit[:19] if commit.startswith("sha256:") else commit[:12]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
