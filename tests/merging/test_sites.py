"""Names: those of a live model and those of its checkpoint, and what names alone tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, TensorHandle
from adapterhub.merging.errors import InvalidPatch, UnknownSite
from adapterhub.merging.sites import layers_of, live_name, naming, stored_name, targets_of, tie_of
from tests.merging import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "bert": tiny.bert,
    "vit classifier": tiny.vit,
    "bare vit": lambda: ViTModel(ViTConfig(**SIZES)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**SIZES)),
    "vit mae": lambda: ViTMAEModel(ViTMAEConfig(**SIZES)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES)),
    "audio spectrogram": lambda: ASTForAudioClassification(ASTConfig(**SIZES, max_length=16, num_mel_bins=16)),
}


@pytest.mark.parametrize("case", MODELS)
def test_live_and_stored_names_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = MODELS[case]()
    base = Checkpoint.open(LocalFolder(tiny.saved(model, tmp_path)))
    live = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    model_type = base.config["model_type"]
    for stored, handle in base.tensors.items():
        name = live_name(stored, model_type)
        assert live[name] == handle.read(), stored
        assert stored_name(name, model_type) == stored
        assert stored_name(stored, model_type) == stored
    assert naming(base.tensors, base).site(next(iter(base.tensors))) == next(iter(base.tensors))


def base_of(*names: str) -> Checkpoint:
    return Checkpoint({name: TensorHandle.of_bytes(name, "F32", (1,), bytes(4)) for name in names}, name="tiny")


def test_one_prefix_is_taken_for_all_names() -> None:
    added = naming(["layers.0.w", "layers.1.w"], base_of("model.layers.0.w", "model.layers.1.w", "head.w"))
    assert added.site("layers.1.w") == "model.layers.1.w"
    stripped = naming(["bert.layers.0.w", "classifier.w"], base_of("layers.0.w", "pooler.w"))
    assert stripped.site("bert.layers.0.w") == "layers.0.w"
    with pytest.raises(UnknownSite, match=r"classifier\.w: base 'tiny' has no such parameter"):
        stripped.site("classifier.w")


def test_two_prefixes_that_fit_are_not_guessed_between() -> None:
    with pytest.raises(InvalidPatch, match=r"has it below decoder\. and encoder\."):
        naming(["block.0.w"], base_of("encoder.block.0.w", "decoder.block.0.w"))


@pytest.mark.parametrize(
    ("model", "stored", "output"),
    [
        (tiny.gpt2, "transformer.wte.weight", "lm_head.weight"),
        (lambda: tiny.llama(tied=True), "model.embed_tokens.weight", "lm_head.weight"),
        (tiny.bert_for_masked_lm, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ],
    ids=["gpt2", "tied llama", "bert for masked lm"],
)
def test_ties_are_those_of_transformers(
    model: Callable[[], PreTrainedModel], stored: str, output: str, tmp_path: Path
) -> None:
    made = model()
    base = Checkpoint.open(LocalFolder(tiny.saved(made, tmp_path)))
    tie = tie_of(base)
    assert tie is not None
    assert (tie.stored, tie.output) == (stored, output)
    live = made.state_dict()
    assert live[tie.stored].data_ptr() == live[tie.output].data_ptr()
    assert tie.output not in base.tensors


def test_models_without_an_output_embedding_have_no_tie(bert_folder: Path, llama_folder: Path) -> None:
    assert tie_of(Checkpoint.open(LocalFolder(bert_folder))) is None
    assert tie_of(Checkpoint.open(LocalFolder(llama_folder))) is None


def test_names_tell_layers_and_targets() -> None:
    sites = ["h.0.attn.c_attn.weight", "h.10.attn.c_attn.weight", "h.2.mlp.c_fc.bias", "wte.weight"]
    assert list(layers_of(sites).items()) == [("0", 1), ("2", 1), ("10", 1), ("-", 1)]
    assert targets_of(sites) == ("c_attn", "c_fc", "wte")
