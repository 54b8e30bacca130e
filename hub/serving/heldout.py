"""Held-out examples: the lines of a file, and what is measured on them. Never imports torch.

A text is a string, or a list of token ids for a model without a tokenizer. All lines of a file are of one form:

- {"text"}: the mean loss of a token, in nats;
- {"prompt", "completion"}: the mean loss of a token of the completion, in nats;
- {"prompt", "choices", "answer"}: accuracy; answer is a choice's number or text, and the model chooses the likeliest;
- {"text", "label"}: the mean loss of a classifier; label is a class's number or name.

Without labels, `entropy` takes {"text"} alone: the mean entropy of what a model predicts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from adapterhub.hub.errors import InvalidRequest

Text: TypeAlias = str | Sequence[int]

MAX_LINES = 100_000
"""Most examples that one candidate is scored on."""

ENTROPY = "entropy"
_FORMS: Mapping[frozenset[str], str] = {
    frozenset({"text"}): "loss",
    frozenset({"prompt", "completion"}): "completion loss",
    frozenset({"prompt", "choices", "answer"}): "accuracy",
    frozenset({"text", "label"}): "label loss",
}
MEASURES = (*_FORMS.values(), ENTROPY)


@dataclass(frozen=True)
class HeldOut:
    """Examples and what is measured on them, one of MEASURES. lines: as in the file, checked."""

    measure: str
    lines: tuple[Mapping[str, Any], ...]

    @property
    def is_larger_better(self) -> bool:
        return self.measure == "accuracy"

    @property
    def unit(self) -> str:
        """What the score counts, in words."""
        return {"accuracy": "of 1", "label loss": "nats an example"}.get(self.measure, "nats a token")


def read(text: str, where: str, *, measure: str | None = None) -> HeldOut:
    """The examples of a file of JSON lines. measure: "entropy", or None for what the lines' form says.

    Raises InvalidRequest, which names the line.
    """
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise InvalidRequest(f"{where}, line {number}: no JSON: {error}") from error
    return of_lines(lines, where, measure=measure)


def of_lines(lines: Sequence[Any], where: str, *, measure: str | None = None) -> HeldOut:
    """The examples of objects that were read already. Raises as `read`."""
    if not 1 <= len(lines) <= MAX_LINES:
        raise InvalidRequest(f"{where}: holds {len(lines)} examples; 1 to {MAX_LINES} are scored")
    forms = [_form(line, f"{where}, line {number}") for number, line in enumerate(lines, 1)]
    other = next((number for number, form in enumerate(forms, 1) if form != forms[0]), None)
    if other is not None:
        raise InvalidRequest(f"{where}, line {other}: is of the form {forms[other - 1]!r}, the first of {forms[0]!r}")
    if measure == ENTROPY and forms[0] != "loss":
        raise InvalidRequest(f'{where}: entropy is measured on lines {{"text"}} alone, without answers')
    if measure not in (None, ENTROPY):
        raise InvalidRequest(f"{measure}: what is measured follows from the lines' form; only entropy is asked for")
    return HeldOut(measure or forms[0], tuple(lines))


def _form(line: Any, where: str) -> str:
    keys = frozenset(line) if isinstance(line, dict) else frozenset()
    if keys not in _FORMS:
        forms = "; ".join("{" + ", ".join(sorted(form)) + "}" for form in _FORMS)
        raise InvalidRequest(f"{where}: has {', '.join(sorted(keys)) or 'no fields'}; a line is one of {forms}")
    texts = [line[key] for key in ("text", "prompt", "completion") if key in line]
    choices = line.get("choices", [])
    if not isinstance(choices, list) or not all(map(_is_text, [*texts, *choices])):
        raise InvalidRequest(f"{where}: a text is a string, or a list of token ids")
    if "choices" in line and _answers(line) != 1:
        raise InvalidRequest(f"{where}: answer is {line['answer']!r}; expected one choice's number, from 0, or text")
    if "label" in line and not _is_label(line["label"]):
        raise InvalidRequest(f"{where}: label is {line['label']!r}; expected a class's number or name")
    return _FORMS[keys]


def answer(line: Mapping[str, Any]) -> int:
    """The number of the right choice."""
    given, choices = line["answer"], line["choices"]
    return int(given) if isinstance(given, int) else choices.index(given)


def _answers(line: Mapping[str, Any]) -> int:
    """How many choices the answer means; 1 is right."""
    given, choices = line["answer"], line["choices"]
    if isinstance(given, int) and not isinstance(given, bool):
        return int(0 <= given < len(choices))
    return choices.count(given) if len(choices) > 1 else 0


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value)


def texts(lines: Iterable[Mapping[str, Any]]) -> list[Text]:
    """The text of each line."""
    return [line["text"] for line in lines]
