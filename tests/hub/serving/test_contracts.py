"""Patches served as their contracts say: templates, tokens, names of classes, words that stand for classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.serving.protocol import Generate, Sampling, Source, Started, Task, VariantSpec
from adapterhub.merging import native
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.hub.serving.test_engine import expected_text, text_of

NORM = "model.norm.weight"
ZERO = np.zeros(32, np.float32)
CHAT = Generate(messages=[{"role": "user", "content": "hi"}], max_tokens=8, sampling=Sampling(temperature=0))


def patched(folder: Path, contract: dict[str, Any], site: str = NORM, term: Any = None) -> Source:
    """A native patch that changes nothing but how the model is used, unless a term says more."""
    native.write_patch(folder, sites={site: term or native.sparse(ZERO + 1e-3)}, base={}, contract=contract)
    return models.source(
        f"demo/{folder.parent.name}-{folder.name}", folder, "sparse" if term is None else "replace_rows"
    )


def spec(base: Source, *given: Source) -> VariantSpec:
    return models.spec(" + ".join(one.reference for one in (base, *given)), base, *given)


async def prompt_tokens(engine: EngineOnALoop, asked: VariantSpec, request: Generate = CHAT) -> int:
    events = [event async for event in engine.client.generate(asked, request)]
    assert isinstance(events[0], Started)
    return events[0].prompt_tokens


def test_the_chat_template_of_a_patch_takes_the_place_of_the_models(
    engine: EngineOnALoop, base: Source, tmp_path: Path
) -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}:"
    patch = patched(tmp_path / "chat", {"chat_template": template})
    assert engine.run(prompt_tokens(engine, spec(base, patch))) == len("<user>hi:")
    assert engine.run(prompt_tokens(engine, spec(base))) == len("hi")
    as_text = Generate(prompt="<user>hi:", max_tokens=8, sampling=CHAT.sampling)
    found = engine.run(text_of(engine.client, spec(base, patch), CHAT))
    assert found == engine.run(text_of(engine.client, spec(base, patch), as_text))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_template_beside_an_ordinary_adapter_is_its_own(
    engine: EngineOnALoop, base: Source, folder: Path, file: str, tmp_path: Path
) -> None:
    models.lora(folder / "llama", tmp_path / "lora", seed=1)
    text = "!{{ messages[0]['content'] }}!"
    (tmp_path / "lora" / file).write_text(text if file.endswith("jinja") else f'{{"chat_template": "{text}"}}')
    patch = models.source(f"demo/with-{file}", tmp_path / "lora", "lora")
    assert engine.run(prompt_tokens(engine, spec(base, patch))) == len("!hi!")


def test_two_contracts_that_differ_are_refused_by_name_and_equal_ones_are_one(
    engine: EngineOnALoop, base: Source, tmp_path: Path
) -> None:
    one, same, other = (
        patched(tmp_path / name, {"chat_template": text}) for name, text in (("a", "x"), ("b", "x"), ("c", "yy"))
    )
    assert engine.run(prompt_tokens(engine, spec(base, one, same))) == 1
    with pytest.raises(UnfitPatch, match=r"-[ac]@.* and demo/.*-[ac]@.* each have a chat_template of their own"):
        engine.run(prompt_tokens(engine, spec(base, one, other)))


def test_added_tokens_are_read_with_the_rows_that_the_patch_brings(engine: EngineOnALoop, tmp_path: Path) -> None:
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(models.llama(tmp_path / "small"))
    model.resize_token_embeddings(models.VOCABULARY + 2, mean_resizing=False)
    model.save_pretrained(tmp_path / "base")
    models.tokenizer().save_pretrained(tmp_path / "base")
    rows = np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)
    site, shape = "model.embed_tokens.weight", (models.VOCABULARY + 2, 32)
    places = np.array([models.VOCABULARY, models.VOCABULARY + 1])
    term = native.term("replace_rows", shape, idx=places, value=rows)
    patch = patched(tmp_path / "tokens", {"added_tokens": ["<new>", "<other>"]}, site, term)
    base = models.source("demo/grown", tmp_path / "base")
    asked = Generate(prompt="a<new>b<other>", max_tokens=8, sampling=Sampling(temperature=0))
    assert engine.run(prompt_tokens(engine, spec(base, patch), asked)) == 4
    assert engine.run(prompt_tokens(engine, spec(base), asked)) == len("a<new>b<other>")
    with torch.no_grad():
        model.get_input_embeddings().weight[-2:] = torch.from_numpy(rows)
    tokenizer = models.tokenizer()
    tokenizer.add_tokens(["<new>", "<other>"])
    ids = tokenizer("a<new>b<other>", return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=models.END)
    expected = tokenizer.decode(out[0, 4:], skip_special_tokens=True)
    assert engine.run(text_of(engine.client, spec(base, patch), asked)) == expected
    too_many = patched(tmp_path / "many", {"added_tokens": ["<1>", "<2>", "<3>"]})
    with pytest.raises(UnfitPatch, match="has 260 rows"):
        engine.run(prompt_tokens(engine, spec(base, too_many), asked))


def test_a_label_map_names_the_classes(engine: EngineOnALoop, tmp_path: Path) -> None:
    base = models.source("demo/bert", models.bert_classifier(tmp_path / "bert"))
    site = "bert.encoder.layer.0.output.LayerNorm.weight"
    named = {"0": "bad", "1": "so-so", "2": "good"}
    term = native.sparse(ZERO + 1e-3)
    native.write_patch(tmp_path / "labels", sites={site: term}, base={}, contract={"label_map": named})
    patch = models.source("demo/labels", tmp_path / "labels", "sparse")
    found = engine.run(engine.client.task(spec(base, patch), Task("text-classification", "fine"))).output[0]
    bare = engine.run(engine.client.task(spec(base), Task("text-classification", "fine"))).output[0]
    renamed = {"no": "bad", "maybe": "so-so", "yes": "good"}
    assert [one["label"] for one in found] == [renamed[one["label"]] for one in bare]
    native.write_patch(tmp_path / "few", sites={site: term}, base={}, contract={"label_map": {"0": "x"}})
    few = models.source("demo/few", tmp_path / "few", "sparse")
    with pytest.raises(UnfitPatch, match=r"label_map names classes 0; .* of 3 classes"):
        engine.run(engine.client.task(spec(base, few), Task("text-classification", "fine")))


def test_a_pattern_and_its_words_classify_with_a_language_model(
    engine: EngineOnALoop, base: Source, folder: Path, tmp_path: Path
) -> None:
    contract = {"pattern": "{text}? It is {mask}.", "verbalizer": {"negative": "b", "positive": "g"}}
    patch = patched(tmp_path / "words", contract)
    found = engine.run(engine.client.task(spec(base, patch), Task("text-classification", ["fine", "bad"]))).output
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    with torch.no_grad():
        model.model.norm.weight += 1e-3
        for text, told in zip(["fine", "bad"], found, strict=True):
            ids = models.tokenizer()(f"{text}? It is", return_tensors="pt")["input_ids"]
            words = [models.tokenizer()(word)["input_ids"][0] for word in "bg"]
            expected = model(input_ids=ids).logits[0, -1][words].softmax(-1)
            scores = {one["label"]: one["score"] for one in told}
            assert scores["negative"] == pytest.approx(float(expected[0]), rel=1e-4)
            assert scores["positive"] == pytest.approx(float(expected[1]), rel=1e-4)


def test_a_masked_model_says_the_word_at_the_mask(engine: EngineOnALoop, tmp_path: Path) -> None:
    made = transformers.BertConfig(
        vocab_size=models.VOCABULARY + 1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model: Any = transformers.BertForMaskedLM(made)
    model.eval()
    model.save_pretrained(tmp_path / "mlm")
    tokenizer = models.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "mlm")
    contract = {"pattern": "{mask} is {text}", "verbalizer": {"no": "n", "yes": "y"}}
    site = "bert.encoder.layer.0.output.LayerNorm.bias"
    native.write_patch(tmp_path / "pet", sites={site: native.sparse(ZERO + 0.1)}, base={}, contract=contract)
    base, patch = models.source("demo/mlm", tmp_path / "mlm"), models.source("demo/pet", tmp_path / "pet", "sparse")
    told = engine.run(engine.client.task(spec(base, patch), Task("text-classification", "fine"))).output[0]
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.bias += 0.1
        logits = model(**tokenizer("<mask> is fine", return_tensors="pt")).logits[0, 0]
        expected = logits[[tokenizer(word)["input_ids"][0] for word in "ny"]].softmax(-1)
    assert {one["label"]: one["score"] for one in told}["yes"] == pytest.approx(float(expected[1]), rel=1e-4)


@pytest.mark.parametrize(
    ("contract", "error", "says"),
    [
        ({"invocation_tokens": ["<go>"]}, InvalidRequest, "prompts that hold <go>"),
        ({"indicator_tokens": ["x", "zz"]}, InvalidRequest, "hold x or zz"),
        ({"head": "classifier"}, UnfitPatch, "head classifier, which LlamaForCausalLM does not have"),
        ({"sampling_rate": 16_000}, UnfitPatch, "sampling_rate"),
        ({"tokenizer_sha256": "0" * 64}, UnfitPatch, r"trained with the tokenizer\.json of sha256 0000"),
        ({"verbalizer": {"a": "long"}}, UnfitPatch, "long is no single token"),
        ({"label_map": {"0": "a"}}, UnfitPatch, "is a LlamaForCausalLM"),
    ],
)
def test_a_contract_that_cannot_be_kept_is_refused_by_name(
    engine: EngineOnALoop, base: Source, tmp_path: Path, contract: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        engine.run(prompt_tokens(engine, spec(base, patched(tmp_path / "p", contract))))


def test_prompts_that_hold_the_tokens_are_answered(
    engine: EngineOnALoop, base: Source, folder: Path, tmp_path: Path
) -> None:
    digest = base.folder.digest("tokenizer.json")
    contract = {"invocation_tokens": ["hi"], "indicator_tokens": ["i", "zz"], "tokenizer_sha256": digest}
    patch = patched(tmp_path / "go", contract)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    with torch.no_grad():
        model.model.norm.weight += 1e-3
    assert engine.run(text_of(engine.client, spec(base, patch), CHAT)) == expected_text(model, "hi", 8)
