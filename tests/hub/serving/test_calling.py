"""What tools a model is told of, and where its prompt ends when it must call one, by templates of real models."""

from typing import Any

import pytest

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.calling import Calling, rendered
from adapterhub.hub.serving.protocol import Generate
from tests.hub.serving import models

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (
    {"type": "function", "function": {"name": "weather", "description": "now", "parameters": CITY}},
    {"type": "function", "function": {"name": "stop"}},
)
USER = {"role": "user", "content": "How is it in Paris?"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    ],
}
ANSWERED = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "rain"}


def tokenizer(name: str) -> Any:
    made: Any = models.tokenizer()
    made.chat_template = models.chat_template(name)
    return made


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "', '", "arguments": '),
        ("qwen3", '<think>\n\n</think>\n\n<tool_call>\n{"name": "', '", "arguments": '),
        ("llama3_1", '{"name": "', '", "parameters": '),
        ("llama3_2", '{"name": "', '", "parameters": '),
        # arguments that are not JSON there: a call is forced in the plain form
        ("glm4moe", '{"name": "', '", "arguments": '),
    ],
)
def test_a_forced_call_begins_as_the_template_writes_it(name: str, before: str, after: str) -> None:
    known = tokenizer(name)
    free = Calling(known, Generate(messages=[USER], tools=TOOLS))
    assert not free.choices
    assert '"city"' in free.prompt
    one = Calling(known, Generate(messages=[USER], tools=TOOLS, must_call=("weather",)))
    assert one.prompt == free.prompt + before + "weather" + after
    assert one.choices == {"weather": CITY}
    some = Calling(known, Generate(messages=[USER], tools=TOOLS, must_call=("weather", "stop")))
    assert some.prompt == free.prompt + before
    assert some.between == after
    assert some.choices == {"weather": CITY, "stop": {"type": "object"}}


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "deepseekv3", "glm4moe"])
def test_calls_and_answers_of_tools_are_read_by_templates_of_both_kinds(name: str) -> None:
    text = rendered(tokenizer(name), [USER, CALLED, ANSWERED])
    assert text.index("weather") < text.index("Paris", text.index("weather")) < text.index("rain")
    assert '\\"city\\"' not in text


MISTRAL = """{%- set users = messages | selectattr("role", "equalto", "user") | list %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none and message == users[-1] %}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
        {%- endif -%}
        [INST] {{ message.content }}[/INST]
    {%- elif message.tool_calls is defined %}[TOOL_CALLS] [
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception("ids have nine characters") }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (", " if not loop.last else "]") }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if message.tool_call_id | length != 9 %}{{ raise_exception("ids have nine characters") }}{% endif %}
        {{- "[TOOL_RESULTS] " + message.content + message.tool_call_id }}
    {%- endif %}
{%- endfor %}"""
"""What is particular to the templates of Mistral's models of 2024."""


def test_mistrals_templates_get_ids_of_nine_digits_and_write_lists() -> None:
    known: Any = models.tokenizer()
    known.chat_template = MISTRAL
    ids = [f"call_{number:032x}" for number in range(2)]
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    calls = {"role": "assistant", "content": "", "tool_calls": [{**call, "id": one} for one in ids]}
    answers = [{"role": "tool", "tool_call_id": one, "content": "rain"} for one in reversed(ids)]
    text = rendered(known, [USER, calls, *answers])
    assert text.endswith("[TOOL_RESULTS] rain000000001[TOOL_RESULTS] rain000000000")
    forced = Calling(known, Generate(messages=[USER], tools=TOOLS, must_call=("weather",)))
    assert forced.prompt.endswith('[/INST][TOOL_CALLS] [{"name": "weather", "arguments": ')
    free = Calling(known, Generate(messages=[USER], tools=TOOLS))
    assert free.seen == ("[TOOL_CALLS]",)
    assert list(free.reader().push("words")) == ["words"]
    assert calls["tool_calls"][0]["id"] == ids[0]  # type: ignore[index]


@pytest.mark.parametrize("name", ["phi3", None])
def test_a_model_whose_template_knows_no_tools_says_so(name: str | None) -> None:
    known = models.tokenizer() if name is None else tokenizer(name)
    with pytest.raises(InvalidRequest, match="knows no tools"):
        Calling(known, Generate(messages=[USER], tools=TOOLS))
