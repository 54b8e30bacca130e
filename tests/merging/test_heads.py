"""Heads of several tasks: never averaged without being told, kept whole, or left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from adapterhub.merging import engine, patches
from adapterhub.merging.errors import BaseMismatch, InvalidParameter, NotRepresentable, ShapeMismatch
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.head_policy import Heads
from adapterhub.merging.recipes.nodes import Form, Ref
from tests.merging import tiny

HEAD = ("classifier.bias", "classifier.weight")
MOOD, SPAM, TWO = ("sad", "so-so", "glad"), ("ham", "spam", "unsure"), ("no", "yes")


def bert(folder: Path, labels: tuple[str, ...] | None, seed: int, hidden: int = 16) -> Path:
    torch.manual_seed(seed)
    named: dict[str, Any] = {"num_labels": 3} if labels is None else {"id2label": dict(enumerate(labels))}
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": hidden, "intermediate_size": 24, "num_hidden_layers": 1}
    config = BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32, **named)
    return tiny.saved(BertForSequenceClassification(config), folder)


def lora(base: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    tuned = get_peft_model(model, config)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(str(folder))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    bert(tmp_path / "base", None, 0)
    bert(tmp_path / "mood", MOOD, 1)
    bert(tmp_path / "mood2", MOOD, 2)
    bert(tmp_path / "spam", SPAM, 3)
    bert(tmp_path / "two", TWO, 4)
    lora(tmp_path / "base", tmp_path / "a", 5)
    lora(tmp_path / "base", tmp_path / "b", 6)
    return tmp_path


def planned(folder: Path, text: str, **options: Any) -> Plan:
    recipe = parse(text)
    inputs = {
        ref: Input(ref.address, LocalFolder(folder / ref.name), "", "lora" if ref.name in ("a", "b") else "model")
        for ref in recipe.references()
    }
    return plan(recipe, inputs, memory_bytes=1 << 30, **options)


def merged(folder: Path, text: str, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    out = folder / f"out-{len(list(folder.iterdir()))}"
    engine.run(planned(folder, text, **options), out)
    return load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base + 0.5*a + 0.5*b", "a (labels not stated) and b (labels not stated)"),
        ("linear(base; a, b)", "each have a head of their own"),
        ("ties(mood; mood2, spam)", "mood (sad, so-so, glad) and spam (ham, spam, unsure)"),
        ("mood + 0.5*spam", "mood (sad, so-so, glad) and spam"),
    ],
)
def test_heads_that_differ_are_refused_with_the_three_choices(made: Path, text: str, told: str) -> None:
    with pytest.raises(BaseMismatch) as refused:
        planned(made, text)
    for words in (told, "heads=keep:NAME", "heads=multi", "heads=drop", "classifier."):
        assert words in str(refused.value)


@pytest.mark.parametrize("text", ["base + a", "base + 0.5*a", "mood + 0.5*mood2", "linear(mood; mood2)"])
def test_one_head_and_heads_of_the_same_labels_are_merged_as_ever(made: Path, text: str) -> None:
    assert "heads" not in json.loads(planned(made, text).canonical)


def test_the_kept_head_is_whole_and_the_rest_is_merged(made: Path) -> None:
    found, _ = merged(made, "base + 0.5*a + 0.5*b", heads="keep:a")
    saved = load_file(made / "a" / "adapter_model.safetensors")
    for name in HEAD:
        (own,) = (value for key, value in saved.items() if key.endswith(name))
        assert torch.equal(found[name], own)
    base = load_file(made / "base" / "model.safetensors")
    site = "bert.encoder.layer.0.attention.self.query.weight"
    deltas = []
    for name in ("a", "b"):
        factors = load_file(made / name / "adapter_model.safetensors")
        A, B = (next(v for k, v in factors.items() if part in k).double() for part in ("lora_A", "lora_B"))
        deltas.append(B @ A * 8 / 2)
    assert torch.allclose(found[site].double(), base[site].double() + 0.5 * (deltas[0] + deltas[1]), atol=1e-6)


def test_a_kept_head_of_a_model_brings_its_labels_and_its_size(made: Path) -> None:
    found, config = merged(made, "linear(mood; spam, two)", heads="keep:two")
    own = load_file(made / "two" / "model.safetensors")
    assert all(torch.equal(found[name], own[name]) for name in HEAD)
    assert config["id2label"] == {"0": "no", "1": "yes"}
    others = {name: load_file(made / name / "model.safetensors") for name in ("mood", "spam", "two")}
    site = "bert.embeddings.word_embeddings.weight"
    mean = (others["spam"][site].double() + others["two"][site].double()) / 2
    assert torch.allclose(found[site].double(), mean, atol=1e-6)
    loaded = AutoModelForSequenceClassification.from_pretrained(next(made.glob("out-*")), local_files_only=True)
    assert loaded.config.num_labels == 2


def test_dropped_heads_leave_the_bases(made: Path) -> None:
    base = load_file(made / "mood" / "model.safetensors")
    for heads in ("drop", "keep:mood"):
        found, config = merged(made, "linear(mood; spam, two)", heads=heads)
        assert all(torch.equal(found[name], base[name]) for name in HEAD)
        assert config["id2label"] == {"0": "sad", "1": "so-so", "2": "glad"}


def test_a_policy_is_part_of_the_recipe(made: Path) -> None:
    digests = {planned(made, "base + a + b", heads=heads).recipe_digest for heads in ("keep:a", "keep:b", "drop")}
    assert len(digests) == 3


def test_a_recipe_file_says_what_becomes_of_heads(made: Path) -> None:
    file = replace(parse("base + a + b"), form=Form(heads=Heads("keep", Ref("a"))))
    inputs = dict(planned(made, "base + a + b", heads="drop").inputs)
    said = plan(file, inputs, memory_bytes=1 << 30)
    assert said.recipe_digest == planned(made, "base + a + b", heads="keep:a").recipe_digest
    assert plan(file, inputs, memory_bytes=1 << 30, heads="drop").recipe_digest != said.recipe_digest
    with pytest.raises(InvalidParameter, match="keep:spam'; expected keep:NAME with one of base, a, b"):
        plan(replace(file, form=Form(heads=Heads("keep", Ref("spam")))), inputs, memory_bytes=1 << 30)


def test_what_the_policy_cannot_do_is_refused(made: Path) -> None:
    with pytest.raises(NotRepresentable, match=r"two brings classifier.bias \(2,\), and the base has \(3,\)"):
        planned(made, "linear(mood; spam, two)", heads="multi")
    with pytest.raises(InvalidParameter, match="heads=drop: a stack has its last slice's head"):
        planned(made, "stack(base[0:1], mood[0:1])", heads="drop")
    for text in ("keep:c", "keep", "drop:a", "all"):
        with pytest.raises(InvalidParameter, match="keep:NAME with one of base, a, b"):
            planned(made, "base + a + b", heads=text)
    bert(made / "wide", MOOD, 7, hidden=32)
    with pytest.raises(ShapeMismatch):
        planned(made, "mood + wide", heads="drop")


def test_every_head_is_kept_as_a_patch_on_the_result(made: Path) -> None:
    out = made / "all"
    engine.run(planned(made, "mood + 0.5*spam + 0.5*mood2", heads="multi"), out)
    result, base = load_file(out / "model.safetensors"), load_file(made / "mood" / "model.safetensors")
    assert all(torch.equal(result[name], base[name]) for name in HEAD)
    facts = {one.path: one for one in patches.inspect(LocalFolder(out))}
    assert {path: one.kind for path, one in facts.items()} == {
        "": "model",
        "heads/spam": "replace",
        "heads/mood2": "replace",
    }
    assert facts["heads/spam"].contract["label_map"] == {"0": "ham", "1": "spam", "2": "unsure"}
    inputs = {
        Ref("lab/all"): Input("lab/all", LocalFolder(out)),
        Ref("lab/all", path="heads/spam"): Input("lab/all", LocalFolder(out), "heads/spam", "replace"),
    }
    served = plan(parse("lab/all + lab/all/heads/spam"), inputs, memory_bytes=1 << 30, attaches=True)
    tensors = engine.variant(served)
    own = load_file(made / "spam" / "model.safetensors")
    assert tensors.keys() == set(HEAD)
    assert all(torch.equal(tensors[name], own[name]) for name in HEAD)
    assert served.contract["label_map"]["1"] == "spam"
