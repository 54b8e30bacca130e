"""Chat templates of merges: the formats that models' authors publish, mergekit's choice, and what is refused."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from adapterhub.merging.chat_templates import BUILT_IN, MAX_CHARACTERS, check_template, template_for, template_of
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import InvalidParameter
from tests.merging.speech import ENGLISH, bpe, loaded, saved

ASKED = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "So"},
]
TOLD = [{"role": "system", "content": "Be kind"}, *ASKED]


def rendered(template: str, messages: Sequence[Any], *, is_asked: bool = False) -> str:
    """As transformers renders it."""
    render: Any = render_jinja_template
    [found], _ = render(
        [list(messages)], chat_template=template, add_generation_prompt=is_asked, bos_token="<s>", eos_token="</s>"
    )
    return str(found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "alpaca",
            "Be kind\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nSo\n\n### Response:\n",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nSo<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "exaone",
            "[|system|]Be kind[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]So\n[|assistant|]",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nSo<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "<s> [INST] Be kind\n\nHi [/INST] Hello</s> [INST] So [/INST]"),
    ],
)
def test_a_built_in_template_is_the_published_format(name: str, expected: str) -> None:
    check_template(BUILT_IN[name])
    assert rendered(BUILT_IN[name], TOLD, is_asked=True) == expected


@pytest.mark.parametrize("messages", [ASKED, TOLD], ids=["asked", "told"])
@pytest.mark.parametrize("is_asked", [False, True])
@pytest.mark.parametrize("name", ["chatml", "exaone", "llama3", "mistral"])
def test_a_built_in_template_says_what_mergekit_s_says(name: str, is_asked: bool, messages: Sequence[Any]) -> None:
    """White space aside: mergekit's chatml, exaone and llama3 put line breaks between turns that no model has seen."""
    theirs = resources.files("mergekit._data.chat_templates").joinpath(f"{name}.jinja").read_text()
    assert set(BUILT_IN) == {"alpaca", "chatml", "exaone", "llama3", "mistral"}
    ours = rendered(BUILT_IN[name], messages, is_asked=is_asked)
    assert "".join(ours.split()) == "".join(rendered(theirs, messages, is_asked=is_asked).split())


def test_mistral_turns_alternate() -> None:
    with pytest.raises(Exception, match="take turns"):
        rendered(BUILT_IN["mistral"], [ASKED[0], ASKED[0]])


def test_auto_is_the_most_common_and_then_the_first(tmp_path: Path) -> None:
    for number, template in enumerate(["{{ 1 }}", "{{ 2 }}", "{{ 2 }}\n", None, "{{ 1 }}"]):
        saved(bpe(ENGLISH), tmp_path / str(number), **({"chat_template": template} if template else {}))
    places = [(LocalFolder(tmp_path), str(number)) for number in range(5)]
    assert template_for("auto", places[:3]) == "{{ 2 }}"
    assert template_for("auto", places) == "{{ 1 }}"
    assert template_for("auto", places[3:4]) is None


def test_templates_are_found_where_transformers_has_put_them_over_time(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    folder = LocalFolder(tmp_path)
    assert template_of(folder, "") is None
    config.write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert template_of(folder, "") == "{{ 1 }}"
    named = [{"name": "tool", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 3 }}"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert template_of(folder, "") == "{{ 3 }}"
    (tmp_path / "chat_template.jinja").write_text("{{ 4 }}")
    assert template_of(folder, "") == "{{ 4 }}"


@pytest.mark.parametrize(
    "text",
    [
        "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{% if m is string %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
    ],
)
def test_what_transformers_knows_passes_and_nothing_is_worked_out(text: str) -> None:
    assert template_for(text, []) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("chatmll", "expected auto, alpaca, chatml"),
        ("{% for %}", "line 1"),
        ("{{ messages | shout }}", "no 'shout'"),
        ("{{ 1 if messages is loud }}", "no 'loud'"),
        ("{" * MAX_CHARACTERS + "{", "at most"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "nested too deeply"),
    ],
    ids=["name", "syntax", "filter", "test", "length", "depth"],
)
def test_what_is_no_template_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameter, match=problem):
        template_for(text, [])


def test_a_tokenizer_with_the_template_loads_in_transformers(tmp_path: Path) -> None:
    saved(bpe(ENGLISH), tmp_path, chat_template=BUILT_IN["llama3"])
    assert loaded(tmp_path).apply_chat_template(TOLD, tokenize=False) == rendered(BUILT_IN["llama3"], TOLD)
