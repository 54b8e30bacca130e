"""Plans: everything known and refused before work, checked by running small ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.merging import native
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.engine import run
from adapterhub.merging.errors import (
    BaseMismatch,
    InvalidParameter,
    NotRepresentable,
    PlanTooLarge,
    RecipeTooLarge,
    ShapeMismatch,
    UnknownSite,
)
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.steps import MethodDelta, ModelDelta, TermDelta
from tests.merging import tiny

GIB = 2**30
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Ref, Input]:
    """A Llama, a second one, two LoRAs, a sparse patch and a mask, each for that base."""
    root = tmp_path_factory.mktemp("inputs")
    tiny.saved(tiny.llama(), root / "base")
    (root / "base" / "tokenizer.json").write_text("{}")
    (root / "base" / "tokenizer_code.py").write_text("")
    tiny.saved(tiny.llama(seed=7), root / "m")
    tiny.adapter(tiny.llama(), root / "a", target_modules=["q_proj", "v_proj"])
    tiny.adapter(tiny.llama(), root / "b", target_modules=["q_proj"], r=2, seed=5)
    rng = np.random.default_rng(1)
    delta = rng.normal(size=16).astype(np.float32)
    native.write_patch(root / "s", sites={NORM: native.sparse(delta)}, base={"repo_id": "other/base"})
    native.write_patch(root / "k", sites={NORM: native.select(delta > 0, delta)}, base={})
    kinds = {"base": "model", "m": "model", "a": "lora", "b": "lora", "s": "sparse", "k": "mask"}
    return {Ref(f"tiny/{name}"): given(root / name, kind) for name, kind in kinds.items()}


def given(folder: Path, kind: str, path: str = "") -> Input:
    return Input(f"tiny/{folder.name}@{'0' * 40}", LocalFolder(folder), path, kind)


def planned(text: str, inputs: dict[Ref, Input], **options: Any) -> Plan:
    return plan(parse(text), inputs, **{"memory_bytes": GIB, **options})


def test_untouched_tensors_are_copies_and_touched_ones_have_their_terms(inputs: dict[Ref, Input]) -> None:
    made = planned("tiny/base + 0.5*tiny/a + 2*tiny/b + tiny/s + tiny/k", inputs)
    assert made.touched == {
        NORM,
        *(f"model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in ("q_proj", "v_proj")),
    }
    by_name = {output.name: output for output in made.outputs}
    assert all(output.is_copy for name, output in by_name.items() if name not in made.touched)
    addends = by_name["model.layers.0.self_attn.q_proj.weight"].addends
    assert sorted(addend.weight for addend in addends) == [0.5, 2.0]
    deltas = [addend.delta for addend in by_name[NORM].addends]
    assert {delta.term.term for delta in deltas if isinstance(delta, TermDelta)} == {"sparse", "mask"}


def test_the_planned_size_is_the_size_of_the_file(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    made = planned("tiny/base + tiny/a", inputs, dtype="bfloat16")
    result = run(made, tmp_path / "out")
    sizes = {file.name: file.size_bytes for file in result.files}
    assert sizes["model.safetensors"] == made.size_bytes
    assert sizes.keys() >= {"config.json", "generation_config.json", "recipe.json", "tokenizer.json"}
    assert "tokenizer_code.py" not in sizes
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16


def test_a_further_model_stands_for_its_difference(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    made = planned("tiny/base + 0.25*tiny/m", inputs)
    assert all(isinstance(addend.delta, ModelDelta) for output in made.outputs for addend in output.addends)
    run(made, tmp_path / "out")
    base, other = tiny.llama().state_dict(), tiny.llama(seed=7).state_dict()
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(value, base[name] + 0.25 * (other[name] - base[name]))


def test_a_method_sees_every_input_at_a_site_that_any_touches(inputs: dict[Ref, Input]) -> None:
    made = planned("ties(tiny/base; tiny/a, 0.5*tiny/b, density=0.5)", inputs)
    by_name = {output.name: output for output in made.outputs}
    (addend,) = by_name["model.layers.0.self_attn.v_proj.weight"].addends
    assert isinstance(addend.delta, MethodDelta)
    assert sorted(len(parts) for parts in addend.delta.inputs) == [0, 1]
    assert sorted(addend.delta.weights) == [0.5, 1.0]
    assert by_name["lm_head.weight"].is_copy


def test_a_tied_embedding_is_untied_in_the_result(gpt2_folder: Path, tmp_path: Path) -> None:
    tiny.adapter(tiny.gpt2(), tmp_path / "a", target_modules=["wte"])
    inputs = {Ref("tiny/base"): given(gpt2_folder, "model"), Ref("tiny/a"): given(tmp_path / "a", "lora")}
    made = planned("tiny/base + tiny/a", inputs)
    assert made.touched == {"transformer.wte.weight", "lm_head.weight"}
    assert made.config["tie_word_embeddings"] is False
    run(made, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    original = tiny.gpt2().state_dict()["transformer.wte.weight"]
    assert torch.equal(written["lm_head.weight"], original)
    assert not torch.equal(written["transformer.wte.weight"], original)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, original)


def test_a_new_head_becomes_a_tensor_of_the_result(bert_folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        tiny.adapter(
            tiny.bert_classifier(seed=seed), tmp_path / str(seed), target_modules=["query"], task_type="SEQ_CLS"
        )
    inputs = {Ref("tiny/base"): given(bert_folder, "model")}
    inputs |= {Ref(f"tiny/{seed}x"): given(tmp_path / str(seed), "lora") for seed in (1, 2)}
    made = planned("tiny/base + tiny/1x", inputs)
    head = next(output for output in made.outputs if output.name == "classifier.weight")
    assert head.is_copy
    assert head.base.name == "base_model.model.classifier.weight"
    with pytest.raises(BaseMismatch, match="each have a head of their own"):
        planned("tiny/base + tiny/1x + tiny/2x", inputs)


def test_loras_become_one_lora(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    made = planned("tiny/base + 0.5*tiny/a + 2*tiny/b", inputs, as_kind="lora")
    assert (made.as_kind, made.outputs) == ("lora", ())
    assert made.size_bytes == next(
        file.size_bytes for file in run(made, tmp_path / "out").files if file.name == "adapter_model.safetensors"
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny/base"
    both = {Ref("tiny/base"): inputs[Ref("tiny/base")], Ref("tiny/sum"): given(tmp_path / "out", "lora")}
    run(planned("tiny/base + tiny/sum", both), tmp_path / "one")
    run(planned("tiny/base + 0.5*tiny/a + 2*tiny/b", inputs), tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in two)


@pytest.mark.parametrize(
    ("text", "options", "error", "says"),
    [
        ("tiny/base + tiny/a", {"dtype": "int8"}, InvalidParameter, "dtype is 'int8'"),
        ("tiny/base + tiny/a", {"memory_bytes": 100}, PlanTooLarge, "self_attn"),
        ("tiny/base + tiny/s", {"as_kind": "lora"}, NotRepresentable, "sparse term"),
        ("tiny/base + tiny/a", {"as_kind": "mask"}, NotRepresentable, "can be written as diffusers, gguf, kohya, lora"),
        ("tiny/base", {"as_kind": "lora"}, NotRepresentable, "adds nothing"),
        ("tiny/base + ties(tiny/a, tiny/b)", {"as_kind": "lora"}, NotRepresentable, "ties is no weighted sum"),
    ],
)
def test_what_cannot_be_done_is_refused(
    text: str, options: dict[str, Any], error: type[Exception], says: str, inputs: dict[Ref, Input]
) -> None:
    with pytest.raises(error, match=says):
        planned(text, inputs, **options)


def test_a_total_rank_past_the_limit_is_refused(inputs: dict[Ref, Input], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.merging.plan.MAX_TOTAL_RANK", 5)
    with pytest.raises(RecipeTooLarge, match="ranks add up to 6"):
        planned("tiny/base + tiny/a + tiny/b", inputs)


def test_models_of_other_shapes_are_refused(inputs: dict[Ref, Input], gpt2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownSite):
        planned("tiny/base + tiny/x", {**inputs, Ref("tiny/x"): given(gpt2_folder, "model")})
    wide = tiny.llama()
    wide.resize_token_embeddings(40)
    with pytest.raises(ShapeMismatch):
        planned("tiny/base + tiny/x", {**inputs, Ref("tiny/x"): given(tiny.saved(wide, tmp_path / "wide"), "model")})
    weights = load_file(tiny.saved(tiny.llama(), tmp_path / "less") / "model.safetensors")
    del weights[NORM]
    save_file(weights, tmp_path / "less" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseMismatch, match=NORM):
        planned("tiny/base + tiny/x", {**inputs, Ref("tiny/x"): given(tmp_path / "less", "model")})


def test_the_plan_explains_itself(inputs: dict[Ref, Input]) -> None:
    made = planned("tiny/base + tiny/s + tiny/a", inputs)
    told = json.loads(json.dumps(made.describe()))
    assert told["recipe"] == "tiny/base + tiny/s + tiny/a"
    assert told["recipe_digest"] == made.recipe_digest
    assert told["tensors_touched"] == len(made.touched)
    assert 0 < told["peak_bytes"] < GIB
    assert told["notes"] == [
        "tiny/s says it was trained on other/base, not on tiny/base; port it if they differ",
    ]


def test_equal_recipes_give_equal_bytes_in_any_order(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    one = planned("tiny/base + 0.7*tiny/a + 0.5*tiny/b + tiny/s", inputs)
    two = planned("tiny/base + tiny/s + 0.5*tiny/b + 0.7*tiny/a", inputs)
    assert one.canonical == two.canonical
    files = [run(made, tmp_path / str(index)).files for index, made in enumerate((one, two))]
    digests = [{file.name: file.digest for file in each} for each in files]
    assert digests[0]["model.safetensors"] == digests[1]["model.safetensors"]
    assert digests[0]["recipe.json"] == digests[1]["recipe.json"]
