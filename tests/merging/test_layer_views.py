"""Stacks of slices: what stands in a plan of one, and which are refused before any work."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors.torch import load_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import (
    BaseMismatch,
    ExpressionError,
    InvalidParameter,
    MergingError,
    NotFoldable,
    ShapeMismatch,
)
from adapterhub.merging.layer_views import View, is_before_layers, layer_count, stacked_config
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Call, Ref, Stack
from adapterhub.merging.recipes.yaml import read
from tests.merging import tiny
from tests.merging.exactness.compare import trained


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Llamas a of four layers, b of two, wide of another width, a BERT, and a LoRA of a."""
    root = tmp_path_factory.mktemp("stacks")
    tiny.saved(tiny.llama(layers=4), root / "a")
    tiny.saved(tiny.llama(seed=1, layers=2), root / "b")
    tiny.saved(tiny.gpt2(), root / "gpt")
    trained(tiny.llama(layers=4), LoraConfig(r=2, target_modules=["q_proj"]), root / "lora")
    return {folder.name: folder for folder in root.iterdir()}


def planned(text: str, folders: Mapping[str, Path], *, attaches: bool = False, as_kind: str | None = None) -> Plan:
    recipe = read(text) if text.startswith("{") else parse(text)
    inputs = {}
    for ref in recipe.references():
        folder = LocalFolder(folders[ref.name])
        inputs[ref] = Input(f"{ref.name}@{'0' * 40}", folder, kind=patches.inspect(folder)[0].kind)
    return plan(recipe, inputs, memory_bytes=1 << 30, attaches=attaches, as_kind=as_kind)


def test_a_stack_is_slices_of_references_with_layers() -> None:
    root = parse('stack(slerp(a[0:2]; b@v1[2:4], t=0.2), "x y"[0:1])').root
    a, b = Ref("a", layers=(0, 2)), Ref("b", "v1", layers=(2, 4))
    assert root == Stack((Call("slerp", a, (b,), (("t", 0.2),)), Ref("x y", layers=(0, 1))))
    assert str(root) == 'stack(slerp(a[0:2]; b@v1[2:4], t=0.2), "x y"[0:1])'
    assert b.address == "b@v1"


def test_a_stack_takes_each_layer_from_its_place(folders: Mapping[str, Path], tmp_path: Path) -> None:
    made = planned("stack(a[2:4], b[0:2] , a[1:2] + 2*lora[1:2])", folders)
    run(made, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    a, b = (load_file(folders[name] / "model.safetensors") for name in "ab")
    adapter = load_file(folders["lora"] / "adapter_model.safetensors")
    for place, (source, layer) in enumerate([(a, 2), (a, 3), (b, 0), (b, 1)]):
        for part in ("self_attn.q_proj.weight", "mlp.up_proj.weight"):
            assert found[f"model.layers.{place}.{part}"].equal(source[f"model.layers.{layer}.{part}"])
    stem = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    delta = 2 * 4 * adapter[stem.format("B")] @ adapter[stem.format("A")]
    name = "self_attn.q_proj.weight"
    error = found[f"model.layers.4.{name}"] - a[f"model.layers.1.{name}"] - delta
    assert float(error.abs().max()) < 1e-5
    assert found["model.embed_tokens.weight"].equal(a["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 5


def test_a_stacks_digest_is_of_its_slices_in_their_order(folders: Mapping[str, Path]) -> None:
    texts = ["stack(a[0:2], b[0:2])", "stack(b[0:2], a[0:2])", "stack(a[0:2], b[0:1])", "stack(a[0:2], a[0:2])", "a"]
    assert len({planned(text, folders).recipe_digest for text in texts}) == len(texts)
    one, same = (planned(text, folders) for text in ("stack(a[0:2] + lora[0:2])", "stack(lora[0:2] + a[0:2])"))
    assert one.recipe_digest == same.recipe_digest
    value = json.loads(planned(texts[0], folders).canonical)
    assert [one["layers"] for one in value["inputs"]] == [[0, 2], [0, 2]]
    assert [value["inputs"][one["base"]]["name"][0] for one in value["stack"]] == ["a", "b"]


REFUSED: dict[str, tuple[type[MergingError], str]] = {
    "a[0:2] + lora[0:2]": (ExpressionError, "layers are named in a stack alone"),
    "stack(a)": (ExpressionError, "all of a slice has as many layers"),
    "stack(a[0:2] + lora[0:3])": (ExpressionError, "all of a slice has as many layers"),
    "stack(a[0:2], stack(a[0:2]))": (ExpressionError, "a stack is a whole model and stands alone"),
    "stack(a[0:5])": (BaseMismatch, "a@0+: has 4 layers; the recipe takes 0 to 5"),
    "stack(a[0:2] + b[1:3])": (BaseMismatch, r"b@0+: has no parameter model.layers.1.* in b\[1:3\]"),
    "stack(a[0:1] + gpt[0:1])": (BaseMismatch, "has no parameter"),
    "stack(lora[0:1])": (BaseMismatch, "names no full model"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_stack_that_cannot_be_is_refused(text: str, folders: Mapping[str, Path]) -> None:
    error, says = REFUSED[text]
    with pytest.raises(error, match=says):
        planned(text, folders)


def test_models_of_another_width_are_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    tiny.saved(tiny.llama(layers=2), tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    import torch
    from safetensors.torch import save_file

    wide = load_file(tmp_path / "wide" / "model.safetensors")
    save_file({name: torch.cat([one, one]) for name, one in wide.items()}, tmp_path / "wide" / "model.safetensors")
    with pytest.raises(ShapeMismatch):
        planned("stack(linear(a[0:1]; a[0:1], wide[0:1]))", {**folders, "wide": tmp_path / "wide"})


def test_a_stack_is_neither_served_nor_a_patch(folders: Mapping[str, Path]) -> None:
    with pytest.raises(NotFoldable, match="a stack is a model of its own"):
        planned("stack(a[0:2])", folders, attaches=True)
    with pytest.raises(NotFoldable, match="a stack is a model of its own"):
        planned("stack(a[0:2] + lora[0:2])", folders, as_kind="lora")


def test_one_slice_of_whole_models_says_how_many_layers_they_have(folders: Mapping[str, Path]) -> None:
    text = "{{merge_method: passthrough, slices: [{{sources: [{{model: a, layer_range: [0, {}]}}]}}]}}"
    assert len(planned(text.format(4), folders, attaches=True).outputs) == len(planned("a", folders).outputs)
    shorter = planned(text.format(3), folders)
    assert shorter.config["num_hidden_layers"] == 3
    assert not any("layers.3." in one.name for one in shorter.outputs)
    with pytest.raises(BaseMismatch, match="has 4 layers; the recipe takes 0 to 5"):
        planned(text.format(5), folders)
    with pytest.raises(NotFoldable, match="the recipe takes 3 of its layers"):
        planned(text.format(3), folders, attaches=True)


def test_models_without_tokenizers_keep_their_rows(folders: Mapping[str, Path]) -> None:
    text = "{{merge_method: passthrough, base_model: a, models: [{{model: a}}], {}}}"
    assert planned(text.format("tokenizer_source: base"), folders).outputs
    assert planned(text.format("tokenizer_source: a"), folders).outputs
    with pytest.raises(InvalidParameter, match="has no tokenizer files"):
        planned(text.format("tokenizer_source: union"), folders)


def test_a_stack_takes_tokenizer_settings_of_whole_models(folders: Mapping[str, Path]) -> None:
    slices = "[{{sources: [{{model: a, layer_range: [0, 2]}}]}}, {{sources: [{{model: a, layer_range: [1, 3]}}]}}]"
    text = f"{{{{merge_method: passthrough, slices: {slices}, {{}}}}}}"
    assert planned(text.format("tokenizer_source: base"), folders).outputs
    assert "chat_template.jinja" in planned(text.format("chat_template: chatml"), folders).files
    for told in ("tokenizer_source: union", "tokenizer: {source: base, pad_to_multiple_of: 8}"):
        with pytest.raises(InvalidParameter, match="has no tokenizer files"):
            planned(text.format(told), folders)


def test_layers_are_counted_in_one_list(folders: Mapping[str, Path]) -> None:
    assert layer_count(Checkpoint.open(LocalFolder(folders["a"]))) == 4
    assert layer_count(Checkpoint.open(LocalFolder(folders["gpt"]))) == 2
    with pytest.raises(BaseMismatch, match="its layers are in 2 lists"):
        layer_count(Checkpoint({"encoder.layers.0.w": None, "decoder.layers.0.w": None}))  # type: ignore[dict-item]
    assert View(1, 3, 5).name("model.layers.2.mlp.weight") == "model.layers.6.mlp.weight"
    assert View(1, 3, 5).name("model.layers.3.mlp.weight") is None
    assert View(1, 3).name("model.norm.weight") == "model.norm.weight"


def test_embeddings_come_before_the_layers_and_heads_after() -> None:
    before = ["model.embed_tokens.weight", "transformer.wpe.weight", "bert.embeddings.LayerNorm.bias", "shared.weight"]
    after = ["lm_head.weight", "model.norm.weight", "embed_out.weight", "transformer.ln_f.bias", "cls.predictions.bias"]
    assert all(map(is_before_layers, before))
    assert not any(map(is_before_layers, after))


def test_a_configuration_tells_what_it_tells_layer_by_layer_for_the_layers_taken() -> None:
    one = {"num_hidden_layers": 3, "layer_types": ["x", "y", "z"], "rope": 1}
    other = {"num_hidden_layers": 2, "layer_types": ["p", "q"]}
    found = stacked_config([(one, 3, range(1, 3)), (other, 2, range(2))])
    assert found == {"num_hidden_layers": 4, "layer_types": ["y", "z", "p", "q"], "rope": 1}
