"""Merging models of different vocabularies, against mergekit 0.1.5's own run on the same tiny models."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import (
    InvalidParameter,
    MergingError,
    NotFoldable,
    NotRepresentable,
    ShapeMismatch,
    UnknownName,
)
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Form, Recipe
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from adapterhub.merging.recipes.yaml import read
from tests.merging import tiny
from tests.merging.exactness.compare import DTYPES, record, roundings
from tests.merging.speech import CODE, ENGLISH, LATIN, bpe, changed, loaded, saved
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


def other(name: str, folder: Path, rows: int, *, seed: int) -> Path:
    """A model of another architecture, whose tables have other names."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": rows, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    wide: dict[str, Any] = {"intermediate_size": 24, "max_position_embeddings": 32}
    makers: dict[str, Any] = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=32, n_embd=16, n_layer=2, n_head=2)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, **wide, num_key_value_heads=2)),
        "bert": lambda: BertForMaskedLM(BertConfig(**sizes, **wide)),
    }
    made = makers[name]()
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    return folder


def tokenizers(root: Path) -> Iterator[tuple[str, int]]:
    """Three tokenizers saved, with words in common and added tokens; name and number of tokens of each."""
    more: dict[str, list[str | AddedToken]] = {
        "base": [],
        "a": [AddedToken("<|im_end|>", special=True)],
        "b": ["<|im_end|>", AddedToken("Ġand")],
    }
    special = ("<s>", "</s>", "<|endoftext|>")  # transformers gives a Qwen the last one, whatever its files say
    for name, texts in TEXTS.items():
        yield name, len(saved(bpe(texts, SIZES[name], special), root / name, *more[name]))


def family(root: Path, dtype: torch.dtype = torch.float32, *, tied: bool = False) -> dict[str, Path]:
    """Three models with tokenizers of their own, and a base with rows to spare."""
    for number, (name, size) in enumerate(tokenizers(root)):
        model(root / name, size + 3 * (name == "base"), seed=number, dtype=dtype, tied=tied)
    return {name: root / name for name in TEXTS}


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    made = {name: family(tmp_path_factory.mktemp(name), dtype) for name, dtype in DTYPES.items()}
    return made | {"tied": family(tmp_path_factory.mktemp("tied"), tied=True)}


def inputs_of(folders: Mapping[str, Path]) -> dict[Ref, Input]:
    return {Ref(name): Input(f"{name}@{'0' * 40}", LocalFolder(path), kind="model") for name, path in folders.items()}


def planned(text: str, folders: Mapping[str, Path], policy: TokenizerPolicy | None, **options: Any) -> Plan:
    return plan(spoken(text, policy), inputs_of(folders), **{"memory_bytes": 1 << 30, **options})


def spoken(text: str, policy: TokenizerPolicy | None) -> Recipe:
    return replace(parse(text), form=Form(tokenizer=policy))


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
    source = f"{policy.source}{'-tokens' if policy.tokens else ''}"
    named = f"{OURS[method].partition('(')[0]}-tokenizer={source}"
    record(named, "llama", dtype, "mergekit 0.1.5 run_merge", error, "method")
    assert error <= 1.0
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.get_input_embeddings().weight.shape[0] == config["vocab_size"] == made.vocabulary["rows"]
    assert model(**ours(TEXT, return_tensors="pt")).logits.shape[-1] == config["vocab_size"]


SLICED = """
slices:
- sources:
  - {model: $a, layer_range: [0, 2]}
  - {model: $base, layer_range: [0, 2]}
merge_method: slerp
base_model: $base
dtype: float32
parameters:
  t: [{filter: self_attn, value: [0, 1]}, {value: 0.4}]
"""
"""As a public recipe has it, shared/corpus/recipes/0036.yaml."""
STACKED = """
slices:
- sources: [{model: $base, layer_range: [0, 2]}]
- sources: [{model: $a, layer_range: [1, 2]}]
- sources: [{model: $b, layer_range: [0, 1]}]
merge_method: passthrough
dtype: float32
"""


@pytest.mark.parametrize("setting", ["tokenizer_source: union", "tokenizer_source: $a"], ids=["union", "a"])
@pytest.mark.parametrize("name", ["slerp", "passthrough"])
@pytest.mark.usefixtures("ordered")
def test_slices_of_several_vocabularies_merge_as_in_mergekit(
    name: str, setting: str, families: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    folders, text = families["float32"], {"slerp": SLICED, "passthrough": STACKED}[name] + setting
    expected = merged(folders, tmp_path / "theirs", text)
    recipe = read(text.replace("$", ""))
    run(plan(recipe, inputs_of_slices(recipe, folders), memory_bytes=1 << 30), tmp_path / "ours")
    ours, real = loaded(tmp_path / "ours"), loaded(expected)
    assert ours.get_vocab() == real.get_vocab()
    assert ours.encode(f"{TEXT}<|im_end|>") == real.encode(f"{TEXT}<|im_end|>")
    found, theirs = load_file(tmp_path / "ours/model.safetensors"), weights(expected)
    if name == "passthrough":  # where the slice's own model has no row for a token mergekit writes zeros
        for table in ("model.embed_tokens.weight", "lm_head.weight"):
            is_lacking = ~theirs[table].any(1)
            tokens = {number: token for token, number in real.get_vocab().items()}
            lacking = [row for row in is_lacking.nonzero().flatten().tolist() if row in tokens]
            assert lacking
            for row in lacking:
                torch.testing.assert_close(found[table][row], mean_row(tokens[row], table, folders))
            found[table] = found[table].masked_fill(is_lacking[:, None], 0.0)
    error = roundings(found, theirs, torch.float32)
    if name == "slerp":
        record("slerp-slices-tokenizer", "llama", "float32", "mergekit 0.1.5 run_merge", error, "method")
    assert error <= 1.0
    made: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert made(**ours(TEXT, return_tensors="pt")).logits.shape[-1] == len(made.get_input_embeddings().weight)


def mean_row(token: str, table: str, folders: Mapping[str, Path]) -> torch.Tensor:
    """A token's row in the models that have it, averaged."""
    ids = {name: loaded(folder).get_vocab().get(token) for name, folder in folders.items()}
    rows = [weights(folders[name])[table][number] for name, number in ids.items() if number is not None]
    return torch.stack(rows).double().mean(0).float()


def inputs_of_slices(recipe: Recipe, folders: Mapping[str, Path]) -> dict[Ref, Input]:
    return {ref: inputs_of(folders)[Ref(ref.name)] for ref in recipe.references()}


def test_a_stack_of_other_vocabularies_says_how_to_give_it_one(families: dict[str, dict[str, Path]]) -> None:
    folders = families["float32"]
    recipe = read(STACKED.replace("$", ""))
    with pytest.raises(ShapeMismatch, match="tokenizer_source: union"):  # the rows of base below, those of b on top
        plan(recipe, inputs_of_slices(recipe, folders), memory_bytes=1 << 30)


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
@pytest.mark.usefixtures("ordered")
def test_other_architectures_merge_as_in_mergekit(name: str, tmp_path: Path) -> None:
    for number, (one, size) in enumerate(tokenizers(tmp_path)):
        other(name, tmp_path / one, size, seed=number)
    folders = {one: tmp_path / one for one in TEXTS}
    made = planned(OURS[LINEAR], folders, TokenizerPolicy("union", prefers_base=False))
    run(made, tmp_path / "ours")
    expected = weights(merged(folders, tmp_path / "theirs", LINEAR + "tokenizer_source: union"))
    found = load_file(tmp_path / "ours/model.safetensors")
    error = roundings(found, {key: value for key, value in expected.items() if key in found}, torch.float32)
    record("linear-tokenizer=union", name, "float32", "mergekit 0.1.5 run_merge", error, "method")
    assert error <= 1.0
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.get_input_embeddings().weight.shape[0] == made.vocabulary["rows"]


def test_rows_of_a_masked_language_model_move_with_their_biases(tmp_path: Path) -> None:
    words = {"base": ["[PAD]", "[UNK]", "[MASK]", "base"], "a": ["[PAD]", "[UNK]", "[MASK]", "patch", "base"]}
    folders = {name: tmp_path / name for name in words}
    for number, (name, vocabulary) in enumerate(words.items()):
        other("bert", folders[name], len(vocabulary), seed=number)
        (folders[name] / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    made = planned("linear(base; 0.5*base, 0.5*a)", folders, UNION)
    assert made.vocabulary["tables"] == ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"]
    run(made, tmp_path / "out")
    one, two, found = (load_file(folder / "model.safetensors") for folder in (*folders.values(), tmp_path / "out"))
    for table in made.vocabulary["tables"]:
        torch.testing.assert_close(found[table][3], (one[table][3] + two[table][4]) / 2)
        torch.testing.assert_close(found[table][4], two[table][3])
    loaded_model: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert loaded_model.cls.predictions.decoder.weight.shape[0] == 5
    assert loaded(tmp_path / "out").convert_tokens_to_ids("patch") == 4


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


UNION, BASE = TokenizerPolicy("union"), TokenizerPolicy("base")


def test_other_vocabularies_are_refused_with_both_sizes_and_what_to_do(families: dict[str, dict[str, Path]]) -> None:
    folders = families["float32"]
    sizes = [load_file(folders[name] / "model.safetensors")["lm_head.weight"].shape[0] for name in ("a", "base")]
    with pytest.raises(ShapeMismatch, match=rf"\({sizes[0]}, 16\).*\({sizes[1]}, 16\).*tokenizer_source: union"):
        planned("linear(base; 0.5*base, 0.5*a)", folders, None)


def test_a_policy_for_heads_is_refused_beside_a_tokenizer_setting(families: dict[str, dict[str, Path]]) -> None:
    with pytest.raises(InvalidParameter, match="heads=drop: not with a tokenizer setting"):
        planned("linear(base; 0.5*base, 0.5*a)", families["float32"], UNION, heads="drop")


def test_the_report_names_every_action_before_work(families: dict[str, dict[str, Path]]) -> None:
    folders = families["float32"]
    made = planned("linear(base; 0.5*base, 0.3*a, 0.2*b)", folders, TokenizerPolicy("union", pad_to_multiple_of=64))
    tokenizers = {name: loaded(folder).get_vocab() for name, folder in folders.items()}
    told = made.describe()["vocabulary"]
    union = set().union(*tokenizers.values())
    assert (told["tokens"], told["rows"]) == (len(union), 128)
    assert told["padding_rows"] == 128 - len(union)
    assert told["added"]["count"] == len(union - tokenizers["base"].keys())
    assert "<|im_end|>" in told["added"]["tokens"] + sorted(union)
    assert told["filled"]["zero"] == 0
    shared = (tokenizers["a"].keys() & tokenizers["b"].keys()) - tokenizers["base"].keys()
    assert told["filled"]["averaged"] == len(shared)
    assert told["models"]["base"] == {
        "rows": len(tokenizers["base"]) + 3,
        "kept": len(tokenizers["base"]),
        "lacking": len(union - tokenizers["base"].keys()),
        "trimmed": 3,
    }
    assert told["tables"] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert json.loads(json.dumps(made.describe())) == made.describe()
    left_out = planned("linear(base; 0.5*base, 0.5*a)", folders, BASE).vocabulary["left_out"]
    assert left_out["count"] == len(tokenizers["a"].keys() - tokenizers["base"].keys())


def test_an_unchanged_vocabulary_keeps_its_files_byte_for_byte(
    families: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    folders = families["float32"]
    for policy, source in ((BASE, "base"), (TokenizerPolicy(Ref("a")), "a")):
        run(planned("linear(base; 0.5*base, 0.5*a)", folders, policy), tmp_path / source)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / source / name).read_bytes() == (folders[source] / name).read_bytes()


def test_equal_vocabularies_move_no_row(families: dict[str, dict[str, Path]]) -> None:
    folders = {"base": families["float32"]["a"], "a": families["float32"]["a"]}
    made = planned("linear(base; 0.5*base, 0.5*a)", folders, UNION)
    assert not any(one.base.is_computed for one in made.outputs)
    assert not made.files
    assert "tokenizer.json" in made.copied_files


def test_tied_embeddings_stay_tied_where_all_are(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    run(planned("linear(base; 0.5*base, 0.5*a)", families["tied"], UNION), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_tied_and_untied_embeddings_become_untied(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    for base, other in (("tied", "float32"), ("float32", "tied")):
        folders = {"base": families[base]["base"], "a": families[other]["a"]}
        run(planned("linear(base; 0.5*base, 0.5*a)", folders, BASE), tmp_path / base)
        found = load_file(tmp_path / base / "model.safetensors")
        rows = len(loaded(folders["base"]))
        one, two = (load_file(folders[name] / "model.safetensors") for name in ("base", "a"))
        head = one.get("lm_head.weight", one["model.embed_tokens.weight"])[:2]
        assert found["lm_head.weight"].shape == (rows, 16)
        expected = (head + two.get("lm_head.weight", two["model.embed_tokens.weight"])[:2]) / 2
        torch.testing.assert_close(found["lm_head.weight"][:2], expected)
        assert not AutoModelForCausalLM.from_pretrained(tmp_path / base).config.tie_word_embeddings


def test_special_tokens_of_another_source_have_its_ids(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    source = tmp_path / "chat"
    tokenizer = saved(bpe(LATIN, 40, special=("<x>", "<s>", "</s>", "<end>")), source, eos_token="<end>")
    model(source, len(tokenizer), seed=5)
    ids = {"bos_token_id": 1, "eos_token_id": [3, 2], "pad_token_id": 0}
    for name in ("config.json", "generation_config.json"):
        changed(source / name, **ids)
    folders = {"base": families["float32"]["base"], "chat": source}
    run(planned("linear(base; 0.5*base, 0.5*chat)", folders, TokenizerPolicy(Ref("chat"))), tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        found = json.loads((tmp_path / "out" / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (1, [3, 2]), name
    assert loaded(tmp_path / "out").eos_token == "<end>"
    # where the source says nothing, the base's tokens are looked up: <s> and </s> are 1 and 2 there
    for name in ("config.json", "generation_config.json"):
        changed(source / name, **dict.fromkeys(ids))
    run(planned("linear(base; 0.5*base, 0.5*chat)", folders, TokenizerPolicy(Ref("chat"))), tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_tokens_of_the_base_without_a_row_go(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """As Llama 2's [PAD], which fine-tuners added to the tokenizer and not to the model."""
    folders = {name: families["float32"][name] for name in ("base", "a")}
    short = tmp_path / "short"
    rows = len(saved(bpe(ENGLISH, SIZES["base"]), short, pad_token="[PAD]"))
    model(short, rows - 1, seed=0)
    changed(short / "generation_config.json", pad_token_id=rows - 1)
    folders["base"] = short
    made = planned("linear(base; 0.5*base, 0.5*a)", folders, BASE)
    assert made.vocabulary["without_row"] == {"count": 1, "tokens": ["[PAD]"]}
    run(made, tmp_path / "out")
    real = loaded(tmp_path / "out")
    assert (len(real), real.pad_token) == (rows - 1, None)
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["pad_token_id"] is None


def test_a_model_that_is_not_merged_gives_tokens_and_rows(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    folders = families["float32"]
    policy = TokenizerPolicy("base", (("<|im_end|>", row("b")),))
    made = planned("linear(base; 0.5*base, 0.5*a)", folders, policy)
    assert made.vocabulary["filled"]["averaged"] == 0
    run(made, tmp_path / "out")
    number = loaded(tmp_path / "out").convert_tokens_to_ids("<|im_end|>")
    donor = load_file(folders["b"] / "model.safetensors")["lm_head.weight"]
    other = load_file(folders["a"] / "model.safetensors")["lm_head.weight"]
    there, here = (loaded(folders[name]).convert_tokens_to_ids("<|im_end|>") for name in "ba")
    found = load_file(tmp_path / "out/model.safetensors")["lm_head.weight"]
    torch.testing.assert_close(found[number], (donor[there] + other[here]) / 2)


def test_a_model_that_is_not_merged_adds_nothing_to_a_union(families: dict[str, dict[str, Path]]) -> None:
    folders = families["float32"]
    policy = TokenizerPolicy("union", (("<|x|>", row("b", token_id=3)),))
    made = planned("linear(base; 0.5*base, 0.5*a)", folders, policy)
    without = planned("linear(base; 0.5*base, 0.5*a)", folders, UNION)
    assert made.vocabulary["tokens"] == without.vocabulary["tokens"] + 1
    assert made.vocabulary["filled"]["averaged"] == 0


def test_a_model_without_tokenizer_files_has_the_base_s_if_it_has_its_rows(
    families: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    folders = {"base": families["float32"]["base"], "a": tmp_path / "a"}
    rows = load_file(folders["base"] / "model.safetensors")["lm_head.weight"].shape[0]
    model(folders["a"], rows, seed=8)
    made = planned("linear(base; 0.5*base, 0.5*a)", folders, UNION)
    assert "a has no tokenizer files" in made.vocabulary["notes"][0]
    model(folders["a"], rows + 1, seed=8)
    with pytest.raises(InvalidParameter, match="no tokenizer files"):
        planned("linear(base; 0.5*base, 0.5*a)", folders, UNION)


def test_patches_of_moved_rows_are_refused_and_others_merge(
    families: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    folders = {name: families["float32"][name] for name in ("base", "a")}
    base: Any = LlamaForCausalLM.from_pretrained(folders["base"])
    tiny.adapter(base, tmp_path / "rows", target_modules=["embed_tokens"])
    base = LlamaForCausalLM.from_pretrained(folders["base"])
    tiny.adapter(base, tmp_path / "inner", target_modules=["q_proj"])
    inputs = inputs_of(folders)
    for name in ("rows", "inner"):
        inputs[Ref(name)] = Input(f"{name}@{'0' * 40}", LocalFolder(tmp_path / name), kind="lora")
    options: dict[str, Any] = {"memory_bytes": 1 << 30}
    with pytest.raises(
        NotFoldable, match=r"embed_tokens\.weight: rows@.* changes it in the rows of its own vocabulary"
    ):
        plan(spoken("base + 0.5*a + rows", UNION), inputs, **options)
    made = plan(spoken("base + 0.5*a + inner", UNION), inputs, **options)
    assert "model.layers.0.self_attn.q_proj.weight" in made.touched
    with pytest.raises(NotFoldable, match="a base in memory keeps its own"):
        plan(spoken("base + 0.5*a + inner", UNION), inputs, attaches=True, **options)
    with pytest.raises(NotRepresentable, match="leave out either"):
        plan(spoken("base + inner", UNION), inputs, as_kind="lora", **options)


@pytest.mark.parametrize(
    ("policy", "problem", "words"),
    [
        (TokenizerPolicy(Ref("nobody")), UnknownName, "the tokenizer setting names it"),
        (TokenizerPolicy("base", (("<|x|>", row("a", token="<|none|>")),)), InvalidParameter, "none such"),
        (TokenizerPolicy("base", (("<|x|>", row("a", token_id=4000)),)), InvalidParameter, "id 4000 of a"),
    ],
)
def test_settings_that_name_what_is_not_there_are_refused(
    policy: TokenizerPolicy, problem: type[MergingError], words: str, families: dict[str, dict[str, Path]]
) -> None:
    with pytest.raises(problem, match=words):
        planned("linear(base; 0.5*base, 0.5*a)", families["float32"], policy)


@pytest.mark.parametrize(
    "values",
    [
        {"source": None, "pad_to_multiple_of": 8},
        {"source": "base", "pad_to_multiple_of": 0},
        {"source": "base", "tokens": (("", TokenRow()),)},
        {"source": "base", "tokens": (("x", TokenRow()), ("x", TokenRow()))},
    ],
)
def test_settings_that_contradict_themselves_are_refused(values: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="tokenizer"):
        TokenizerPolicy(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"model": Ref("a"), "token": "x", "token_id": 1},
        {"token": "x"},
        {"model": Ref("a"), "is_zero": True},
        {"is_forced": True},
    ],
)
def test_rows_that_contradict_themselves_are_refused(values: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="tokenizer"):
        TokenRow(**values)


def test_the_setting_is_part_of_the_recipe(families: dict[str, dict[str, Path]]) -> None:
    folders = families["float32"]
    text = "linear(base; 0.5*base, 0.5*a)"
    told = [UNION, BASE, TokenizerPolicy(Ref("a")), TokenizerPolicy("union", (("<|x|>", row("b", token_id=3)),))]
    digests = {planned(text, folders, policy).recipe_digest for policy in told}
    assert len(digests) == len(told)
    again = planned("linear(base; 0.5*a, 0.5*base)", folders, TokenizerPolicy(Ref("a")))
    assert again.recipe_digest == planned(text, folders, told[2]).recipe_digest


def test_two_names_of_a_model_are_one(families: dict[str, dict[str, Path]]) -> None:
    inputs = inputs_of(families["float32"])
    inputs[Ref("a", "main")] = inputs[Ref("a")]
    options: dict[str, Any] = {"memory_bytes": 1 << 30}
    text = "linear(base; 0.5*a, 0.5*a@main)"
    made = plan(spoken(text, TokenizerPolicy(Ref("a", "main"))), inputs, **options)
    assert list(made.vocabulary["models"]) == ["base", "a"]
    same = plan(spoken(text, TokenizerPolicy(Ref("a"))), inputs, **options)
    assert made.recipe_digest == same.recipe_digest


def test_memory_counts_what_is_re_indexed_once_for_all_who_read_it(families: dict[str, dict[str, Path]]) -> None:
    made = planned("base + 0.5*a + 0.5*b", families["float32"], UNION)
    head = next(one for one in made.outputs if one.name == "lm_head.weight")
    nbytes = head.base.nbytes
    # three tables in memory, and tiles as large as they: eight of the fold, two for each difference
    assert made.peak_bytes == 3 * nbytes + (8 + 2 * 2) * nbytes
    first, second = head.base.read(), head.base.read()
    assert len({np.frombuffer(one, np.uint8).ctypes.data for one in (first, second)}) == 1


def test_the_same_bytes_on_any_number_of_threads(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    made = planned("linear(base; 0.5*base, 0.3*a, 0.2*b)", families["bfloat16"], UNION)
    one, many = (run(made, tmp_path / str(number), threads=number).files for number in (1, 4))
    assert one == many


def test_a_chat_template_replaces_the_base_s(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    folders = families["float32"]
    old = tmp_path / "old"
    shutil.copytree(folders["base"], old)
    changed(old / "tokenizer_config.json", chat_template="{{ 'old' }}")
    messages = [{"role": "user", "content": "hi"}]
    for number, policy in enumerate((TokenizerPolicy(), BASE, UNION)):
        policy = replace(policy, chat_template="chatml")
        text = "base" if policy.source is None else "linear(base; 0.5*base, 0.5*a)"
        made = planned(text, {"base": old, "a": folders["a"]}, policy)
        assert made.vocabulary["chat_template"] == "chatml"
        run(made, tmp_path / str(number))
        assert "chat_template" not in json.loads((tmp_path / f"{number}/tokenizer_config.json").read_text())
        found = loaded(tmp_path / str(number)).apply_chat_template(messages, tokenize=False)
        assert found == "<|im_start|>user\nhi<|im_end|>\n"
    auto = planned(
        "linear(base; 0.5*base, 0.5*a)",
        {"base": folders["a"], "a": old},
        TokenizerPolicy("union", chat_template="auto"),
    )
    assert auto.files["chat_template.jinja"] == b"{{ 'old' }}"
    none = planned("base", folders, TokenizerPolicy(chat_template="auto"))
    assert none.vocabulary["chat_template"] == "none of the models has one"
