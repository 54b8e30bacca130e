"""Tags of tokens and words at masks through the running server, by huggingface_hub's unmodified InferenceClient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, InferenceClient
from huggingface_hub.errors import BadRequestError

from adapterhub.merging import native
from tests.clients.server import Server
from tests.hub.serving import models
from tests.hub.serving.test_tasks import TEXT, assert_same, pipeline

pytestmark = pytest.mark.slow
DELTA = np.linspace(-1, 1, 32).astype(np.float32)
SITE = "bert.encoder.layer.1.output.LayerNorm.bias"


@pytest.fixture(scope="module")
def folder(serving: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models pushed as admin/tagger and admin/filler, a patch of the former that names its tags anew, and one of the
    latter."""
    root, api = tmp_path_factory.mktemp("words"), HfApi(endpoint=serving.url, token=serving.token)
    models.bert_tagger(root / "tagger", seed=15)
    models.bert_filler(root / "filler")
    named = {str(number): f"I-{number}" for number in range(len(models.TAGS))}
    sites = {SITE: native.sparse(DELTA)}
    base = {"name": "admin/tagger"}
    native.write_patch(root / "renamed", sites=sites, base=base, contract={"label_map": named})
    native.write_patch(root / "other", sites=sites, base={"name": "admin/filler"})
    for one in sorted(root.iterdir()):
        api.create_repo(f"admin/{one.name}")
        api.upload_folder(repo_id=f"admin/{one.name}", folder_path=one)
    return root


def inference(server: Server, model: str) -> Any:
    return InferenceClient(model=f"{server.url}/models/{model}", token=server.token)


def as_told(found: Any) -> list[dict[str, Any]]:
    """The client's elements as the library's, without what neither has."""
    return [{name: value for name, value in vars(one).items() if value is not None} for one in found]


@pytest.mark.parametrize("asked", [{}, {"aggregation_strategy": "simple", "ignore_labels": ["PER"]}])
def test_tokens_are_tagged(serving: Server, folder: Path, asked: dict[str, Any]) -> None:
    library = pipeline("token-classification", folder / "tagger")
    for url in ("admin/tagger", "admin/tagger/pipeline/token-classification"):
        assert_same(as_told(inference(serving, url).token_classification(TEXT, **asked)), library(TEXT, **asked))
    library.model.bert.encoder.layer[1].output.LayerNorm.bias.data += torch.from_numpy(DELTA)
    library.model.config.id2label = {number: f"I-{number}" for number in range(len(models.TAGS))}
    patched = inference(serving, "admin/tagger:admin/renamed").token_classification(TEXT, **asked)
    assert_same(as_told(patched), library(TEXT, **asked))


def test_wishes_for_tags_that_are_not_computed_are_refused(serving: Server, folder: Path) -> None:
    ask = inference(serving, "admin/tagger").token_classification
    for wrong, says in (({"aggregation_strategy": "max"}, "none or simple"), ({"stride": 2}, "stride")):
        with pytest.raises(BadRequestError, match=says):
            ask(TEXT, **wrong)
    with pytest.raises(BadRequestError, match="BertForTokenClassification"):
        inference(serving, "admin/tagger/pipeline/text-classification").text_classification(TEXT)


@pytest.mark.parametrize("asked", [{}, {"top_k": 2}, {"targets": ["paris", "york"]}])
def test_masks_are_filled(serving: Server, folder: Path, asked: dict[str, Any]) -> None:
    text = "sarah lives in [MASK]."
    library = pipeline("fill-mask", folder / "filler")
    for url in ("admin/filler", "admin/filler/pipeline/fill-mask"):
        assert_same(as_told(inference(serving, url).fill_mask(text, **asked)), library(text, **asked))
    bare = library(text, **asked)
    library.model.bert.encoder.layer[1].output.LayerNorm.bias.data += torch.from_numpy(DELTA)
    assert library(text, **asked) != bare
    assert_same(
        as_told(inference(serving, "admin/filler:admin/other").fill_mask(text, **asked)), library(text, **asked)
    )


def test_a_text_without_a_mask_is_refused_and_its_vectors_are_given(serving: Server, folder: Path) -> None:
    with pytest.raises(BadRequestError, match=r"no \[MASK\]"):
        inference(serving, "admin/filler").fill_mask("sarah lives")
    assert inference(serving, "admin/filler").feature_extraction("sarah lives").shape == (1, 4, 32)
