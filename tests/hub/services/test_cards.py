"""Front matter: what is read, and what is refused before it can cost anything."""

import contextlib
import time

import pytest

from adapterhub.hub.errors import InvalidCard
from adapterhub.hub.services import cards

BASIC = """---
license: apache-2.0
language: no
base_model: demo/base
tags: [lora, 1b, 3]
model-index:
  - name: x
    results: []
---

# Title
"""


def card(front_matter: str) -> cards.Card:
    return cards.parse(f"---\n{front_matter}\n---\ntext")


def test_a_card_is_front_matter_and_text() -> None:
    found = cards.parse(BASIC)
    assert found.text == "# Title\n"
    assert found.text_of("license") == "apache-2.0"
    assert found.texts("tags") == ["lora", "1b", "3"]
    assert found.text_of("library_name") is None


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("2026-01-02", "2026-01-02"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("12", 12),
        ("1.5e-3", 0.0015),
        ("'12'", "12"),
        ("9" * 5000, "9" * 5000),
        ("1e999", "1e999"),
        (".nan", ".nan"),
    ],
)
def test_only_json_words_and_numbers_are_not_text(written: str, read: object) -> None:
    assert card(f"key: {written}").data["key"] == read


@pytest.mark.parametrize("text", ["no front matter", "---\nnever closed", "", "a\n---\nb: c\n---\n"])
def test_text_without_front_matter_is_all_text(text: str) -> None:
    assert cards.parse(text) == cards.Card({}, text)


def test_empty_front_matter_is_no_data() -> None:
    assert cards.parse("---\n---\nhi") == cards.Card({}, "hi")


@pytest.mark.parametrize(
    ("front_matter", "problem"),
    [
        ("a: &x 1\nb: *x", "aliases"),
        ("a: *x", "aliases"),
        ("license: mit\nlicense: mit", "'license' stands there twice"),
        ("a:\n  b: 1\n  b: 2", "line 4: the key 'b'"),
        ("base: {x: 1}\n<<: {a: 1}", "merge keys"),
        ('a: "\\0"', "NUL"),
        ('"\\0": a', "NUL"),
        ("a: !!python/object:os.system x", "tag"),
        ("? [a]\n: 1", "a key is plain text"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper"),
        ("a: " + "[" * 5000, "nest"),  # libyaml has a limit of its own, and says so in its own words
        ("a: [1, 2", "line"),
        ("\tx: 1", "not YAML"),
        ("- a", "is a list"),
        ("just words", "is a str"),
        ("tags: {a: b}", "tags is a text or a list"),
        ("pipeline_tag: [a]", "pipeline_tag is a text"),
        ("model-index: 3", "model-index is a list"),
        ("a: " + "b" * 70_000, "64 KiB"),
    ],
)
def test_front_matter_that_could_mean_two_things_is_refused(front_matter: str, problem: str) -> None:
    with pytest.raises(InvalidCard, match=r"README\.md") as refused:
        card(front_matter)
    assert problem in str(refused.value)


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(InvalidCard, match="byte 2"):
        cards.parse(b"ab\xff")


def test_bombs_cost_little() -> None:
    laughs = "a: [1,2]\n" + "".join(f"k{n}: [" + "1," * 4000 + "]\n" for n in range(7))
    start = time.process_time()
    for text in (laughs, "a: " + "{b: " * 10_000, "- a\n" * 15_000):
        with contextlib.suppress(InvalidCard):
            card(text)
    assert time.process_time() - start < 2


def test_an_author_is_told_what_to_mend() -> None:
    assert cards.validate(BASIC) == []
    assert "no front matter" in cards.validate("# Hello")[0]
    warnings = cards.validate("---\nbase_model: /home/ann/model\nbase_model_relation: twin\n---\n")
    assert [w.split()[0] for w in warnings] == ["no", "base_model", "base_model_relation"]
