"""The model in parts, as `extra_body={"adapterhub": ...}`, by the unmodified openai client."""

from typing import Any

import openai
import pytest

ASKED: dict[str, Any] = {"prompt": "hello", "max_tokens": 8, "temperature": 0}
PARTS = [{"repo": "admin/one", "weight": 0.7}, {"repo": "admin/two", "revision": "main", "weight": -0.3}]


@pytest.mark.parametrize(
    ("parts", "expression"),
    [
        ({"patches": PARTS}, "admin/base + 0.7*admin/one - 0.3*admin/two@main"),
        ({"base": "admin/base", "patches": PARTS[:1]}, "admin/base + 0.7*admin/one"),
        (
            {"patches": PARTS, "method": "ties", "params": {"density": 0.4, "normalize": "count"}},
            "ties(admin/base; 0.7*admin/one, -0.3*admin/two@main, density=0.4, normalize=count)",
        ),
    ],
)
def test_parts_are_the_expression_that_they_make(client: openai.OpenAI, parts: dict[str, Any], expression: str) -> None:
    pin = {"execution": "merged"}
    in_parts = client.completions.create(model="admin/base", extra_body={"adapterhub": parts | pin}, **ASKED)
    written = client.completions.create(model=expression, extra_body={"adapterhub": pin}, **ASKED)
    assert in_parts.choices[0].text == written.choices[0].text
    assert in_parts.system_fingerprint == written.system_fingerprint
    assert in_parts.model == "admin/base"


def test_chats_and_embeddings_take_parts_too(client: openai.OpenAI) -> None:
    body = {"adapterhub": {"patches": PARTS[:1]}}
    found = client.embeddings.create(model="admin/base", input="x", extra_body=body)
    written = client.embeddings.create(model="admin/base + 0.7*admin/one", input="x")
    assert found.data[0].embedding == written.data[0].embedding
    messages: Any = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {"messages": messages, "max_tokens": 4, "temperature": 0}
    chats = [
        client.chat.completions.create(model="admin/base", extra_body=body, **asked),
        client.chat.completions.create(model="admin/base + 0.7*admin/one", **asked),
    ]
    assert chats[0].system_fingerprint == chats[1].system_fingerprint


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"patches": []}, "patches"),
        ({"patches": PARTS, "method": "tise"}, "ties"),
        ({"patches": PARTS, "method": "ties", "params": {"densty": 1}}, "no parameter 'densty'"),
        ({"patches": PARTS, "method": "ties", "params": {"density": 7}}, "density is 7"),
        ({"patches": PARTS, "params": {"density": 0.5}}, "parameters belong to a method"),
        ({"patches": [{"repo": "../x"}]}, "is no name"),
        ({"patches": PARTS, "route": "x"}, "route"),
    ],
)
def test_parts_that_mean_nothing_are_refused(client: openai.OpenAI, parts: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        client.completions.create(model="admin/base", extra_body={"adapterhub": parts}, **ASKED)


def test_a_request_pins_how_its_patches_are_computed_with(client: openai.OpenAI) -> None:
    asked = ASKED | {"model": "admin/base + 0.9*admin/one"}
    found = {
        how: client.completions.create(extra_body={"adapterhub": {"execution": how}}, **asked)
        for how in ("merged", "run-time", "merged", "run-time")
    }
    assert found["merged"].choices[0].text == found["run-time"].choices[0].text
    assert found["merged"].system_fingerprint != found["run-time"].system_fingerprint
    either = client.completions.create(**asked).system_fingerprint
    assert either in {one.system_fingerprint for one in found.values()}


@pytest.mark.parametrize(
    ("model", "parts", "said"),
    [
        ("ties(admin/base; admin/one, admin/two)", {"execution": "run-time"}, "cannot run beside the weights"),
        ("admin/base", {"execution": "fast"}, "execution"),
        ("admin/base", {"method": "ties"}, "none is given"),
    ],
)
def test_a_pin_that_cannot_be_kept_is_refused(
    client: openai.OpenAI, model: str, parts: dict[str, str], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.completions.create(extra_body={"adapterhub": parts}, **ASKED | {"model": model})
