"""Merging models of different vocabularies, against mergekit 0.1.5's own run on the same tiny models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.speech import CODE, ENGLISH, LATIN, bpe, loaded, saved
from tests.merging.whole_mergekit import merged, put_in_order

TEXTS = {"base": ENGLISH, "a": LATIN, "b": CODE}
TEXT = "the base and a patch make the model"
SIZES = {"base": 40, "a": 44, "b": 36}


def model(folder: Path, rows: int, *, seed: int, dtype: torch.dtype = torch.float32, tied: bool = False) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    made: Any = LlamaForCausalLM(config)
    made.to(dtype).save_pretrained(folder)
    return folder


def family(root: Path, dtype: torch.dtype = torch.float32, *, tied: bool = False) -> dict[str, Path]:
    """Three models with tokenizers of their own: words in common, added tokens, and a base with rows to spare."""
    more = {"base": [], "a": [AddedToken("<|im_end|>", special=True)], "b": ["<|im_end|>", AddedToken("Ġand")]}
    for number, (name, texts) in enumerate(TEXTS.items()):
        tokenizer = saved(bpe(texts, SIZES[name]), root / name, *more[name])
        model(root / name, len(tokenizer) + 3 * (name == "base"), seed=number, dtype=dtype, tied=tied)
    return {name: root / name for name in TEXTS}


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    made = {name: family(tmp_path_factory.mktemp(name), dtype) for name, dtype in DTYPES.items()}
    return made | {"tied": family(tmp_path_factory.mktemp("tied"), tied=True)}


def inputs_of(folders: Mapping[str, Path]) -> dict[Ref, Input]:
    return {Ref(name): Input(f"{name}@{'0' * 40}", LocalFolder(path), kind="model") for name, path in folders.items()}


def planned(text: str, folders: Mapping[str, Path], policy: TokenizerPolicy | None, **options: Any) -> Plan:
    return plan(parse(text), inputs_of(folders), **{"memory_bytes": 1 << 30, "tokenizer": policy, **options})


def row(name: str | None = None, **options: Any) -> TokenRow:
    return TokenRow(None if name is None else Ref(name), **options)


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_order(monkeypatch, list(TEXTS))


LINEAR = """
merge_method: linear
dtype: float32
models:
- {model: $base, parameters: {weight: 0.5}}
- {model: $a, parameters: {weight: 0.3}}
- {model: $b, parameters: {weight: 0.2}}
"""
ARITHMETIC = """
merge_method: task_arithmetic
base_model: $base
dtype: float32
models:
- {model: $a, parameters: {weight: 0.6}}
- {model: $b, parameters: {weight: -0.4}}
"""
TIES = """
merge_method: ties
base_model: $base
dtype: float32
parameters: {density: 0.5, normalize: true}
models:
- {model: $a, parameters: {weight: 0.6}}
- {model: $b, parameters: {weight: 0.4}}
"""
SLERP = """
merge_method: slerp
base_model: $base
dtype: float32
parameters: {t: 0.4}
models: [{model: $base}, {model: $a}]
"""
OURS = {
    LINEAR: "linear(base; 0.5*base, 0.3*a, 0.2*b)",
    ARITHMETIC: "task_arithmetic(base; 0.6*a, -0.4*b)",
    TIES: "ties(base; 0.6*a, 0.4*b, density=0.5)",
    SLERP: "slerp(base; a, t=0.4)",
}
TOKENS = """
tokenizer:
  source: union
  pad_to_multiple_of: 16
  tokens:
    <|im_end|>: {source: {kind: model_token, model: $base, token: </s>}}
    <|new|>: {source: {kind: model_token, model: $a, token_id: 5}}
    <|zero|>: {source: {kind: zero}, force: true}
    a: {source: $b, force: true}
"""
SETTINGS = {
    "tokenizer_source: union": TokenizerPolicy("union"),
    "tokenizer_source: base": TokenizerPolicy("base"),
    "tokenizer_source: $a": TokenizerPolicy(Ref("a")),
    "tokenizer: {source: base, pad_to_multiple_of: 32}": TokenizerPolicy("base", pad_to_multiple_of=32),
    TOKENS: TokenizerPolicy(
        "union",
        (
            ("<|im_end|>", row("base", token="</s>")),
            ("<|new|>", row("a", token_id=5)),
            ("<|zero|>", row(is_zero=True, is_forced=True)),
            ("a", row("b", is_forced=True)),
        ),
        pad_to_multiple_of=16,
    ),
}
CASES = [(method, setting, dtype) for method in (LINEAR, ARITHMETIC) for setting in SETTINGS for dtype in DTYPES]
# equal magnitudes, of which bfloat16 and padding have many, are taken by mergekit in any order
CASES += [(method, "tokenizer_source: union", "float32") for method in (TIES, SLERP)]


@pytest.mark.parametrize(("method", "setting", "dtype"), CASES, ids=lambda text: " ".join(text.split())[:40])
@pytest.mark.usefixtures("ordered")
def test_models_of_several_vocabularies_merge_as_in_mergekit(
    method: str, setting: str, dtype: str, families: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    folders = families[dtype]
    # without a base_model mergekit averages rows that several models have, the first one's among them
    policy = SETTINGS[setting]
    if "base_model" not in method:
        policy = TokenizerPolicy(policy.source, policy.tokens, policy.pad_to_multiple_of, prefers_base=False)
    made = planned(OURS[method], folders, policy)
    run(made, tmp_path / "ours")
    expected = merged(folders, tmp_path / "theirs", method + setting)
    ours, real = loaded(tmp_path / "ours"), loaded(expected)
    assert ours.get_vocab() == real.get_vocab()
    assert ours.encode(f"{TEXT}<|im_end|>") == real.encode(f"{TEXT}<|im_end|>")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["vocab_size"] == json.loads((expected / "config.json").read_text())["vocab_size"]
    error = roundings(load_file(tmp_path / "ours/model.safetensors"), weights(expected), DTYPES[dtype])
    record("tokenizer", "llama", dtype, "mergekit 0.1.5 run_merge", error, "method")
    assert error <= 1.0
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.get_input_embeddings().weight.shape[0] == config["vocab_size"] == made.vocabulary["rows"]
    assert model(**ours(TEXT, return_tensors="pt")).logits.shape[-1] == config["vocab_size"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
