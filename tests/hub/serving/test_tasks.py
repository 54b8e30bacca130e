"""Tags of tokens and words at masks, as transformers' own pipeline gives them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest
from adapterhub.hub.serving.protocol import Task, VariantSpec
from adapterhub.merging import native
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop

TEXT = "sarah lives in new york and parisville, Ü ann in paris"


def pipeline(task: str, folder: Path) -> Any:
    """The library's own, of any type."""
    made: Any = transformers.pipeline
    return made(task, model=str(folder), device="cpu")


def told(engine: EngineOnALoop, spec: VariantSpec, task: str, inputs: str | list[str], **parameters: Any) -> Any:
    return engine.run(engine.client.task(spec, Task(task, inputs, parameters=parameters))).output


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the rounding of scores."""
    assert expected
    assert [{**one, "score": None} for one in found] == [{**one, "score": None} for one in expected]
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], rtol=1e-4)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.bert_tagger(tmp_path_factory.mktemp("tagger") / "bert", seed=15)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"aggregation_strategy": "simple"},
        {"ignore_labels": []},
        {"aggregation_strategy": "simple", "ignore_labels": ["PER"]},
    ],
)
def test_tokens_are_tagged_as_transformers_does(engine: EngineOnALoop, tagger: Path, asked: dict[str, Any]) -> None:
    spec = models.spec("demo/tagger", models.source("demo/tagger", tagger))
    expected = pipeline("token-classification", tagger)(TEXT, **asked)
    assert_same(told(engine, spec, "token-classification", TEXT, **asked), expected)
    one, other = told(engine, spec, "token-classification", [TEXT, "in paris"], **asked)
    assert_same(one, expected)
    assert_same(other, pipeline("token-classification", tagger)("in paris", **asked))


def test_a_long_text_is_tagged_in_pieces_that_overlap(engine: EngineOnALoop, tmp_path: Path) -> None:
    folder = models.bert_tagger(tmp_path / "short", context=12)
    spec = models.spec("demo/short", models.source("demo/short", folder))
    asked = {"aggregation_strategy": "simple", "stride": 3, "ignore_labels": []}
    expected = pipeline("token-classification", folder)(TEXT * 3, **asked)
    found = told(engine, spec, "token-classification", TEXT * 3, **asked)
    assert_same(found, expected)
    assert found[-1]["end"] == len(TEXT * 3)
    cut = told(engine, spec, "token-classification", TEXT * 3, aggregation_strategy="simple", ignore_labels=[])
    assert_same(cut, pipeline("token-classification", folder)(TEXT * 3, **{**asked, "stride": None}))
    for wrong, says in (
        ({"stride": 10}, "stride: 10; .* below the model's 10 tokens"),
        ({"stride": 1, "aggregation_strategy": "none"}, "stride: pieces"),
        ({"aggregation_strategy": "first"}, "none or simple"),
        ({"ignore_labels": "O"}, "ignore_labels: .* a list of texts"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            told(engine, spec, "token-classification", TEXT, **{"aggregation_strategy": "simple", **wrong})
    with pytest.raises(InvalidRequest, match="pieces with this stride"):
        told(engine, spec, "token-classification", TEXT * 60, aggregation_strategy="simple", stride=9)


def test_a_model_that_counts_places_from_behind_the_padding_reads_fewer_tokens(
    engine: EngineOnALoop, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tokenizer = models.word_tokenizer(context=18)
    sizes: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=1, initializer_range=0.3, **sizes
    )
    transformers.RobertaForTokenClassification(config).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    spec = models.spec("demo/roberta", models.source("demo/roberta", tmp_path / "roberta"))
    expected = pipeline("token-classification", tmp_path / "roberta")(TEXT * 2)
    found = told(engine, spec, "token-classification", TEXT * 2)
    assert len(found) == 16
    assert_same(found, expected)
    assert np.array(told(engine, spec, "feature-extraction", TEXT * 2)).shape == (1, 18, 16)


def test_a_label_map_names_the_tags_and_a_patch_changes_them(
    engine: EngineOnALoop, tagger: Path, tmp_path: Path
) -> None:
    named = {str(number): f"I-{number}" for number in range(len(models.TAGS))}
    delta = np.random.default_rng(1).normal(size=32).astype(np.float32)
    site = "bert.encoder.layer.1.output.LayerNorm.bias"
    native.write_patch(tmp_path / "tags", sites={site: native.sparse(delta)}, base={}, contract={"label_map": named})
    base, patch = models.source("demo/tagger", tagger), models.source("demo/tags", tmp_path / "tags", "sparse")
    spec = models.spec("demo/tagger + demo/tags", base, patch)
    library = pipeline("token-classification", tagger)
    bare = library(TEXT, ignore_labels=[])
    library.model.bert.encoder.layer[1].output.LayerNorm.bias.data += torch.from_numpy(delta)
    library.model.config.id2label = {int(number): name for number, name in named.items()}
    expected = library(TEXT, ignore_labels=[])
    assert [one["score"] for one in expected] != [one["score"] for one in bare]
    assert_same(told(engine, spec, "token-classification", TEXT, ignore_labels=[]), expected)
    grouped = library(TEXT, aggregation_strategy="simple")
    assert_same(told(engine, spec, "token-classification", TEXT, aggregation_strategy="simple"), grouped)


def test_a_model_without_tags_does_not_tag(engine: EngineOnALoop, tmp_path: Path) -> None:
    spec = models.spec("demo/bert", models.source("demo/bert", models.bert_classifier(tmp_path / "bert")))
    with pytest.raises(InvalidRequest, match="BertForSequenceClassification"):
        told(engine, spec, "token-classification", TEXT)


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.bert_filler(tmp_path_factory.mktemp("filler") / "bert")


@pytest.mark.parametrize(
    "asked", [{}, {"top_k": 3}, {"targets": ["paris", "york", "zoo", "paris"]}, {"targets": "new", "top_k": 9}]
)
def test_masks_are_filled_as_transformers_does(engine: EngineOnALoop, filler: Path, asked: dict[str, Any]) -> None:
    spec = models.spec("demo/filler", models.source("demo/filler", filler))
    text = "sarah lives in [MASK]."
    expected = pipeline("fill-mask", filler)(text, **asked)
    assert_same(told(engine, spec, "fill-mask", text, **asked), expected)
    both = told(engine, spec, "fill-mask", [text, "[MASK] lives"], **asked)
    assert_same(both[0], expected)
    assert_same(both[1], pipeline("fill-mask", filler)("[MASK] lives", **asked))


def test_each_of_several_masks_is_filled_alone(engine: EngineOnALoop, filler: Path) -> None:
    spec = models.spec("demo/filler", models.source("demo/filler", filler))
    text = "[MASK] lives in [MASK]."
    expected = pipeline("fill-mask", filler)(text, top_k=2)
    found = told(engine, spec, "fill-mask", text, top_k=2)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert "[MASK]" in found[0][0]["sequence"]


@pytest.mark.parametrize(
    ("text", "asked", "says"),
    [
        ("sarah lives", {}, r"no \[MASK\] in 'sarah lives'"),
        ("[MASK] " * 80, {}, "82 tokens; this model reads 64"),
        ("[MASK]", {"top_k": 0.5}, "top_k"),
        ("[MASK]", {"targets": []}, "at least one"),
        ("[MASK]", {"targets": [7]}, "a list of texts"),
    ],
)
def test_texts_that_cannot_be_filled_are_refused(
    engine: EngineOnALoop, filler: Path, text: str, asked: dict[str, Any], says: str
) -> None:
    spec = models.spec("demo/filler", models.source("demo/filler", filler))
    with pytest.raises(InvalidRequest, match=says):
        told(engine, spec, "fill-mask", text, **asked)


def test_more_filled_texts_than_one_request_makes_are_refused(engine: EngineOnALoop, filler: Path) -> None:
    spec = models.spec("demo/filler", models.source("demo/filler", filler))
    with pytest.raises(InvalidRequest, match="for 10240 masks"):
        told(engine, spec, "fill-mask", ["[MASK] " * 40] * 256, top_k=1)


def test_a_model_without_a_mask_does_not_fill(engine: EngineOnALoop, filler: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(filler, tmp_path / "maskless")
    models.tokenizer().save_pretrained(folder)
    for name, made, says in (
        ("maskless", folder, "a tokenizer with a mask token"),
        ("bert", models.bert_classifier(tmp_path / "bert"), "BertForSequenceClassification"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            told(engine, models.spec(f"demo/{name}", models.source(f"demo/{name}", made)), "fill-mask", "a [MASK]")


def test_virtual_tokens_take_places_of_a_long_text(engine: EngineOnALoop, tmp_path: Path) -> None:
    base = models.gpt2(tmp_path / "gpt2")
    library: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    tuned = peft.get_peft_model(library, config)
    tuned.save_pretrained(str(tmp_path / "prompt"))
    prompt = models.source("demo/prompt", tmp_path / "prompt", "prompt_tuning")
    spec = models.spec("demo/gpt2 + demo/prompt", models.source("demo/gpt2", base), prompt)
    found = np.array(told(engine, spec, "feature-extraction", "a" * 300))
    ids = models.tokenizer()("a" * 251, return_tensors="pt")
    with torch.no_grad():
        expected = tuned.eval()(**ids, output_hidden_states=True).hidden_states[-1][:, 5:]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)
