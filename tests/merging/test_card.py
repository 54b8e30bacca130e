"""Cards of results, read by the library that the Hub reads them with."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from adapterhub.merging.card import card
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from tests.merging.test_plan import GIB, inputs, planned

__all__ = ["inputs"]

COMMIT = "0" * 40


def said(read: ModelCard) -> dict[str, Any]:
    data: Any = read.data
    return dict(data.to_dict())


def test_a_merge_is_drawn_below_all_that_it_was_made_of(inputs: dict[Ref, Input]) -> None:
    read = ModelCard(card(planned("ties(tiny/base; tiny/a, linear(tiny/b, tiny/m)) + tiny/a", inputs), {}))
    told = said(read)
    assert told["base_model"] == ["tiny/base", "tiny/a", "tiny/b", "tiny/m"]
    assert told["base_model_relation"] == "merge"
    assert told["tags"] == ["adapterhub", "merge", "linear", "ties"]
    assert told["library_name"] == "transformers"
    assert "Merge methods: linear, ties." in read.text


def test_an_adapter_is_drawn_below_its_base(inputs: dict[Ref, Input]) -> None:
    told = said(ModelCard(card(planned("tiny/base + tiny/a + tiny/b", inputs, as_kind="lora"), {})))
    assert (told["base_model"], told["base_model_relation"], told["library_name"]) == ("tiny/base", "adapter", "peft")


def test_inputs_are_told_with_commit_and_licence(inputs: dict[Ref, Input]) -> None:
    base = inputs[Ref("tiny/base")]
    licensed = {**inputs, Ref("tiny/base"): Input(base.name, base.folder, licence="apache-2.0")}
    text = card(plan(parse("tiny/base + tiny/a"), licensed, memory_bytes=GIB), {})
    assert f"| `tiny/base` | model | `{COMMIT}` | apache-2.0 |" in text
    assert f"| `tiny/a` | lora | `{COMMIT}` | unknown |" in text


@pytest.mark.parametrize("name", ['evil`|</td>" |', "plain"])
def test_no_name_breaks_out_of_its_place(name: str, inputs: dict[Ref, Input]) -> None:
    base = inputs[Ref("tiny/base")]
    folder = base.folder
    assert isinstance(folder, LocalFolder)
    here = Ref(name)
    given = {here: Input(name, folder, licence="mit\n| x"), Ref("tiny/a"): inputs[Ref("tiny/a")]}
    quoted = name.replace('"', '\\"')
    read = ModelCard(card(plan(parse(f'"{quoted}" + tiny/a'), given, memory_bytes=GIB), {}))
    rows = [line for line in read.text.splitlines() if line.startswith("| `")]
    assert [row.count("|") for row in rows] == [5, 5]
    assert all(row.count("`") % 2 == 0 for row in rows)
    assert said(read)["base_model"] == ([name, "tiny/a"] if name.count("/") == 1 else name)
