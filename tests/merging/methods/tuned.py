"""Tiny whole models of several architectures, a base and three tuned from it, and merges of them by the engine."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES

QUICK = ("llama", "gpt2")
OTHERS = ("mistral", "qwen", "bert")
NAMES = "abc"
on_every_architecture = pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)]
)


def make(name: str, seed: int, dtype: torch.dtype) -> Any:
    if name != "qwen":
        return ARCHITECTURES[name].make(seed=seed, dtype=dtype)
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    model: Any = transformers.Qwen2ForCausalLM(config)
    return model.to(dtype)


@cache
def folders(name: str, dtype: str, root: Path) -> Mapping[str, Path]:
    """A base and three models that differ from it a little, here and there."""
    made = {"base": root / "base"} | {one: root / one for one in NAMES}
    base = make(name, 0, DTYPES[dtype])
    base.save_pretrained(made["base"])
    generator = torch.Generator().manual_seed(1)
    for one in NAMES:
        model = make(name, 0, DTYPES[dtype])
        for parameter in model.parameters():
            change = 0.05 * torch.randn(parameter.shape, generator=generator)
            moved = torch.rand(parameter.shape, generator=generator) < 0.6
            parameter.data = (parameter.data.float() + change * moved).to(DTYPES[dtype])
        model.save_pretrained(made[one])
    return made


def given(name: str, folder: Path) -> Input:
    """A model of a recipe."""
    return Input(f"{name}@{'0' * 40}", LocalFolder(folder), kind="model")


def merged(text: str, folders: Mapping[str, Path], out: Path) -> dict[str, torch.Tensor]:
    """The tensors of an expression on models by name."""
    recipe = parse(text)
    inputs = {ref: given(ref.name, folders[ref.name]) for ref in recipe.references()}
    run(plan(recipe, inputs, memory_bytes=1 << 30), out)
    return load_file(out / "model.safetensors")


def state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of one model."""
    return load_file(folder / "model.safetensors")
