"""Calls are found in what models write, however it comes in pieces, and the pieces of what is none are the text."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.tool_calls import Bare, Call, Described, Forced, Listed, Reader, Tagged

NAMES = frozenset({"weather", "weather_at"})
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in sorted(NAMES)]
TEMPLATE: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thoughts": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<call>(?P<name>\w+)",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<|im_end|>"},
    },
}
PROMPT = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def read(reader: Reader, pieces: Sequence[str]) -> tuple[str, list[tuple[str, Any]]]:
    """All the text, and name and arguments of each call, in the order of their numbers."""
    found = [one for piece in pieces for one in reader.push(piece)] + list(reader.flush())
    calls: list[tuple[str, str]] = []
    for one in found:
        if isinstance(one, Call):
            if one.number == len(calls):
                calls.append((one.name, ""))
            name, arguments = calls[one.number]
            calls[one.number] = name, arguments + one.arguments
    text = "".join(one for one in found if isinstance(one, str))
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


READERS: dict[str, Callable[[], Reader]] = {
    "tagged": lambda: Tagged(NAMES),
    "listed": lambda: Listed(NAMES),
    "bare": lambda: Bare(NAMES),
    "described": lambda: Described(TEMPLATE, PROMPT, TOOLS),
    "forced to one": lambda: Forced(["weather"], '", "arguments": '),
    "forced to some": lambda: Forced(["weather", "weather_at"], '", "arguments": '),
}
PARIS = {"city": "Paris"}
CASES: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("tagged", "just words < and <tool_ too", "just words < and <tool_ too", []),
    (
        "tagged",
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather_at", "arguments": {}}\n</tool_call>\n',
        "Let me see.",
        [("weather", PARIS), ("weather_at", {})],
    ),
    (
        "tagged",
        '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}',
        "",
        [("weather", PARIS)],
    ),
    (
        "tagged",
        '<tool_call>{"name": "nuke", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "nuke", "arguments": {}}</tool_call>',
        [],
    ),
    ("tagged", "a <tool_call>{broken</tool_call> b", "a <tool_call>{broken</tool_call> b", []),
    ("tagged", "  \n", "  \n", []),
    (
        "listed",
        'Well.\n[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}, '
        '{"name": "weather_at", "arguments": {}}]',
        "Well.",
        [("weather", PARIS), ("weather_at", {})],
    ),
    ("listed", "see [TOOL and [1]", "see [TOOL and [1]", []),
    ("listed", "[TOOL_CALLS] [{]", "[TOOL_CALLS] [{]", []),
    ("bare", '\n{"name": "weather", "parameters": {"city": "Paris"}}', "", [("weather", PARIS)]),
    ("bare", '{"name": "weather"}', '{"name": "weather"}', []),
    ("bare", '{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
    ("bare", 'No: {"name": "weather", "parameters": {}}', 'No: {"name": "weather", "parameters": {}}', []),
    ("bare", "[" * 3000, "[" * 3000, []),
    ("bare", "{" + '"a":{' * 3000, "{" + '"a":{' * 3000, []),
    (
        "described",
        '<think>hm</think>Yes.\n<call>weather{"city": "Paris"}</call><call>weather_at{}</call>',
        "<think>hm</think>Yes.",
        [("weather", PARIS), ("weather_at", {})],
    ),
    ("described", "Only words <call", "Only words <call", []),
    ("described", "Yes. <call>weather{broken</call> and more", "Yes. <call>weather{broken</call> and more", []),
    ("forced to one", '{"city":"Paris"}', "", [("weather", PARIS)]),
    ("forced to some", 'weather_at", "arguments": {"city":"Paris"}', "", [("weather_at", PARIS)]),
    ("forced to some", 'weather", "arguments": {}', "", [("weather", {})]),
]


@pytest.mark.parametrize(("kind", "written", "text", "calls"), CASES)
def test_calls_are_found_in_one_piece_or_in_characters(
    kind: str, written: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    assert read(READERS[kind](), [written]) == (text, calls)
    if len(written) < 1000:
        assert read(READERS[kind](), list(written)) == (text, calls)


@given(st.sampled_from(sorted({kind for kind in READERS if not kind.startswith("forced")})), st.data())
def test_how_an_answer_is_cut_makes_no_difference(kind: str, data: st.DataObject) -> None:
    parts = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        '{"name": "weather", "arguments": {}}',
        " ",
        "\n",
        "<",
        "word",
    ]
    parts += ["<call>weather", "{}", "</call>"]
    written = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=8)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
    pieces = [written[start:end] for start, end in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    assert read(READERS[kind](), pieces) == read(READERS[kind](), list(written))


def test_words_are_told_before_the_answer_is_complete() -> None:
    reader = Tagged(NAMES)
    assert reader.push("It is ") == ["It is"]
    assert reader.push("warm <") == [" warm"]


@pytest.mark.parametrize("pattern", [r"(a+)+<call>", r"(?:a|aa)*b", r"(a*){9}", r"a(?R)?", "(?>a)b"])
def test_a_template_that_could_take_for_ever_is_refused(pattern: str) -> None:
    fields = {**TEMPLATE["fields"], "tool_calls": {"open_pattern": pattern, "close": "</call>", "content": "json"}}
    with pytest.raises(InvalidRequest, match="response_template"):
        Described({**TEMPLATE, "fields": fields}, PROMPT, TOOLS)


@pytest.mark.parametrize("template", ["zork", [], {}, {"fields": 1}, {"fields": {"tool_calls": {"open": ""}}}])
def test_what_is_no_template_is_refused(template: Any) -> None:
    with pytest.raises(InvalidRequest, match="response_template"):
        Described(template, PROMPT, TOOLS)
