"""Calls of tools, by the unmodified openai client: forced from a model of noise, and made by one with a script."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from huggingface_hub import HfApi

from tests.clients.server import Server
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models
from tests.hub.serving.test_calling import MISTRAL

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {
        "type": "function",
        "function": {"name": "stop_all", "parameters": {"properties": {}, "additionalProperties": False}},
    },
]
MESSAGES: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
SCRIPT = (
    'I will look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop_all", "arguments": {}}\n</tool_call>'
)
LIST = (
    'I [UNSEEN]will look.\n[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}, '
    '{"name": "stop_all", "arguments": {}}]'
)
CALLS = [("weather", {"city": "Paris", "days": 2}), ("stop_all", {})]
WEATHER_ALONE: Any = {"type": "function", "function": {"name": "weather"}}
RESPONSES = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<<call ",
            "close": ">>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {},
    },
}


@pytest.fixture(scope="module", autouse=True)
def chatty(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models with Qwen's chat template: one of noise, three that say what is written down; and one without tools."""
    folder = tmp_path_factory.mktemp("tools")
    qwen = models.chat_template("qwen2_5")
    made: Any = models.tokenizer()
    prompt = made.apply_chat_template(
        MESSAGES, tools=TOOLS, chat_template=qwen, add_generation_prompt=True, tokenize=False
    )
    at = len(prompt.encode())
    models.llama(folder / "noise", context=4096, template=qwen)
    models.scripted(folder / "hermes", SCRIPT, at=at, template=qwen)
    own = SCRIPT.replace("<tool_call>", "<<call ").replace("</tool_call>", ">>")
    models.scripted(folder / "described", own, at=at, template=qwen, response_template=RESPONSES)
    mistral = made.apply_chat_template(MESSAGES, tools=TOOLS, chat_template=MISTRAL, tokenize=False)
    models.scripted(
        folder / "mistral", LIST, at=len(mistral.encode()), template=MISTRAL, special=["[TOOL_CALLS]", "[UNSEEN]"]
    )
    models.llama(folder / "phi", context=4096, template=models.chat_template("phi3"))
    api = HfApi(endpoint=serving.url, token=serving.token)
    for path in folder.iterdir():
        push(api, path)


Ask = Callable[..., Any]


@pytest.fixture
def ask(client: openai.OpenAI) -> Ask:
    """Asks with the tools; greedy unless said otherwise."""

    def asked(model: str = "admin/noise", **more: Any) -> Any:
        given = {"messages": MESSAGES, "tools": TOOLS, "temperature": 0, "max_tokens": 400, **more}
        return client.chat.completions.create(model=model, **given)

    return asked


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(one.function.name, json.loads(one.function.arguments)) for one in message.tool_calls or ()]


def gathered(chunks: Any) -> tuple[str, list[tuple[str, Any]], str]:
    """The text, calls and reason of a stream, put together as OpenAI's guide does it."""
    text, reason = "", ""
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for piece in choice.delta.tool_calls or ():
                if piece.index not in calls:
                    assert piece.type == "function"
                    assert piece.id.startswith("call_")
                    calls[piece.index] = [piece.function.name, ""]
                calls[piece.index][1] += piece.function.arguments
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()], reason


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_a_named_tool_is_called_by_its_schema(ask: Ask, temperature: float) -> None:
    found = ask(tool_choice=WEATHER_ALONE, n=4, temperature=temperature, seed=5)
    for choice in found.choices:
        [(name, arguments)] = calls_of(choice.message)
        assert name == "weather"
        assert arguments.keys() == {"city", "days"}
        assert arguments["city"] in ("Paris", "Rome")
        assert 1 <= arguments["days"] <= 9
        assert choice.message.content is None
        assert choice.finish_reason == "tool_calls"
    assert len({choice.message.tool_calls[0].id for choice in found.choices}) == 4


def test_a_required_call_is_of_any_of_the_tools(ask: Ask) -> None:
    found = ask(tool_choice="required", n=8, temperature=2, seed=1)
    names = {name for choice in found.choices for name, _ in calls_of(choice.message)}
    assert names == {"weather", "stop_all"}
    assert all(choice.finish_reason == "tool_calls" for choice in found.choices)


@pytest.mark.parametrize("choice", [WEATHER_ALONE, "required"])
def test_a_forced_call_is_streamed_as_the_whole_says(ask: Ask, choice: Any) -> None:
    whole = ask(tool_choice=choice).choices[0].message
    assert gathered(ask(tool_choice=choice, stream=True)) == ("", calls_of(whole), "tool_calls")


def test_a_call_that_is_cut_off_says_so(ask: Ask) -> None:
    found = ask(tool_choice=WEATHER_ALONE, max_tokens=5).choices[0]
    assert found.finish_reason == "length"
    assert found.message.tool_calls[0].function.arguments == '{"cit'


@pytest.mark.parametrize("model", ["admin/hermes", "admin/described", "admin/mistral"])
def test_calls_that_a_model_makes_are_read(ask: Ask, model: str) -> None:
    found = ask(model).choices[0]
    assert (found.message.content, found.finish_reason) == ("I will look.", "tool_calls")
    assert calls_of(found.message) == CALLS
    text, calls, reason = gathered(ask(model, stream=True))
    assert (text.strip(), calls, reason) == ("I will look.", CALLS, "tool_calls")


def test_one_call_alone_where_no_more_are_wanted(ask: Ask) -> None:
    assert calls_of(ask("admin/hermes", parallel_tool_calls=False).choices[0].message) == CALLS[:1]
    assert gathered(ask("admin/hermes", parallel_tool_calls=False, stream=True))[1] == CALLS[:1]


def test_without_a_choice_of_tools_words_are_words(ask: Ask) -> None:
    """The prompt is another, so the script comes at another place; it is text all the same."""
    found = ask("admin/hermes", tool_choice="none").choices[0]
    assert found.message.tool_calls is None
    assert found.finish_reason in ("stop", "length")


def test_calls_and_their_answers_are_shown_to_the_model(ask: Ask) -> None:
    first = ask(tool_choice=WEATHER_ALONE)
    message = first.choices[0].message
    # as the openai client gives it, with its fields that say nothing
    said = [*MESSAGES, message.model_dump()]
    said += [{"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain, thirteen degrees"}]
    second = ask(messages=said, tool_choice="none", max_tokens=1)
    longer = [*said[:-1], {**said[-1], "content": "rain, thirteen degrees!"}]
    third = ask(messages=longer, tool_choice="none", max_tokens=1)
    assert third.usage.prompt_tokens == second.usage.prompt_tokens + 1
    without = ask(messages=MESSAGES, tool_choice="none", max_tokens=1).usage.prompt_tokens
    written = '<tool_call>\n{"name": "weather", "arguments": }\n</tool_call>' + "rain, thirteen degrees"
    assert second.usage.prompt_tokens > without + len(written) + len(message.tool_calls[0].function.arguments)


def test_a_model_that_knows_no_tools_says_so(ask: Ask) -> None:
    for model in ("admin/phi", "admin/base"):
        with pytest.raises(openai.BadRequestError, match="knows no tools"):
            ask(model)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "other is not among the tools"),
        ({"tool_choice": "required", "tools": []}, "there are no tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "weather is described twice"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "name"),
        ({"response_format": {"type": "json_object"}}, "set tool_choice"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"properties": {"b": {"type": "c"}}}}}
                ],
                "tool_choice": "required",
            },
            "tools: a: the JSON schema is refused",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{"}}]}]},
            "not JSON",
        ),
        ({"functions": [{"name": "weather"}]}, "functions: not supported"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(ask: Ask, more: Any, told: str) -> None:
    functions = more.get("functions")
    with pytest.raises(openai.BadRequestError, match=told):
        ask(**({"extra_body": more} if functions else more))


def test_the_streaming_helper_of_the_client_puts_calls_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="admin/hermes", messages=MESSAGES, tools=TOOLS, temperature=0, max_tokens=400
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0].message
    assert [(one.name, json.loads(one.arguments)) for one in done] == CALLS
    assert calls_of(final) == CALLS
