"""Which library a revision is for, and under which words it is found."""

from typing import Any

import pytest

from adapterhub.hub.services.cards import Card
from adapterhub.hub.services.tags import Configs, base_models, derive, library

BERT = {"model_type": "bert"}
LORA = {"peft_type": "LORA", "base_model_name_or_path": "ns/base", "task_type": "CAUSAL_LM", "config": None}
BOTTLENECK = {
    "config": {"reduction_factor": 16},
    "model_class": "BertAdapterModel",
    "model_name": "ns/bert",
    "model_type": "bert",
}


@pytest.mark.parametrize(
    ("model", "adapter", "paths", "named"),
    [
        (BERT, {}, ["config.json"], "transformers"),
        ({}, LORA, ["adapter_config.json"], "peft"),
        ({}, BOTTLENECK, ["adapter_config.json"], "adapter-transformers"),
        (BERT, {}, ["config.json", "modules.json"], "sentence-transformers"),
        ({}, {}, ["model_index.json", "unet/config.json"], "diffusers"),
        ({}, {}, ["pytorch_lora_weights.safetensors"], "diffusers"),
        ({}, {}, ["deep/model_index.json"], None),
        ({}, {"model_name": "ns/bert"}, ["adapter_config.json"], None),
    ],
)
def test_the_library_is_told_by_the_files_at_the_root(
    model: dict[str, Any], adapter: dict[str, Any], paths: list[str], named: str | None
) -> None:
    assert library(Card(), Configs(model, adapter), paths) == named
    assert library(Card({"library_name": "mine"}), Configs(model, adapter), paths) == "mine"


def test_an_adapter_of_peft_is_found_as_such_whatever_its_card_says() -> None:
    card = Card({"library_name": "transformers"})
    assert derive(card, Configs({}, LORA), [], [])[:2] == ["transformers", "peft"]


def test_an_adapter_of_adapterhub_is_found_by_its_names_and_its_base() -> None:
    configs = Configs({}, BOTTLENECK)
    bases = base_models(Card(), configs, [])
    assert bases == [{"name": "ns/bert", "relation": "adapter"}]
    assert {"adapters", "adapter-transformers", "base_model:adapter:ns/bert"} <= set(derive(Card(), configs, bases, []))
    shown = configs.shown()
    assert shown["adapters"] == shown["adapter_transformers"]
    assert shown["adapters"] == {"model_name": "ns/bert", "model_class": "BertAdapterModel"}
    assert "peft" not in shown


def test_an_adapter_of_a_kind_that_is_not_known_names_its_base() -> None:
    unknown = {**LORA, "peft_type": "IA3"}
    assert base_models(Card(), Configs({}, unknown), []) == [{"name": "ns/base", "relation": "adapter"}]


def test_a_base_that_a_database_cannot_hold_is_not_named() -> None:
    configs = Configs({}, {**BOTTLENECK, "model_name": "ns/\0"})
    assert base_models(Card(), configs, []) == []
    assert configs.shown()["adapters"] == {"model_class": "BertAdapterModel"}
