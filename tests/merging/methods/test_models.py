"""Every method of mergekit's on whole tiny models, through the engine, against mergekit on their state dicts."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mergekit import merge_methods as mergekit
from safetensors.torch import load_file

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.methods.test_mergekit import CASES, Case

QUICK = ("llama", "gpt2")
OTHERS = ("mistral", "qwen", "bert")
NAMES = "abc"


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


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Mapping[str, Path]]:
    roots: dict[tuple[str, str], Path] = {}

    def of(name: str, dtype: str) -> Mapping[str, Path]:
        root = roots.setdefault((name, dtype), tmp_path_factory.mktemp(f"{name}-{dtype}"))
        return folders(name, dtype, root)

    return of


def text_of(case: Case) -> str:
    """The case as an expression on base, a, b and c."""
    weights = list(case.weights) or [1.0] * case.models
    terms = [one if weight == 1 else f"{weight}*{one}" for weight, one in zip(weights, NAMES, strict=False)]
    told = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in case.ours.items()]
    return f"{case.method}(base; {', '.join([*terms[: case.models], *told])})"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("stable")
def test_whole_models_merge_as_in_mergekit(
    case: Case, name: str, dtype: str, models: Callable[[str, str], Mapping[str, Path]], tmp_path: Path
) -> None:
    given = models(name, dtype)
    recipe = parse(text_of(case))
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(given[ref.name]), kind="model") for ref in recipe.references()
    }
    run(plan(recipe, inputs, memory_bytes=1 << 30), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    states = {one: load_file(given[one] / "model.safetensors") for one in ("base", *NAMES[: case.models])}
    if not case.has_base and case.method != "slerp":
        states.pop("base")
    told = dict(case.theirs) | ({"weight": list(case.weights)} if case.weights else {})
    expected = mergekit.merge_state_dicts(
        states,
        case.method,
        parameters=told,
        base="base" if "base" in states else None,
        dtype=torch.float32,
        out_dtype=torch.float32,
    )
    error = roundings(found, expected, DTYPES[dtype])
    record(str(case), name, dtype, "mergekit 0.1.5 merge_state_dicts", error, "method")
    assert error <= 1.0
