"""Explanations, beside what the engine then does with the same plan."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from adapterhub.merging import explain
from adapterhub.merging.engine import run
from adapterhub.merging.explain import STATED, Rate, explained
from adapterhub.merging.methods import methods
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input, Ref
from adapterhub.merging.recipes.expression import parse
from tests.merging.test_plan import GIB, given, inputs, planned

__all__ = ["inputs"]


def test_each_tensor_is_told_with_the_method_that_changes_it(inputs: dict[Ref, Input]) -> None:
    told = explained(planned("ties(tiny/base; tiny/a, 0.5*tiny/b) + tiny/s", inputs))
    by_name = {one["name"]: one["method"] for one in told["per_tensor"]}
    assert by_name["model.layers.0.self_attn.q_proj.weight"] == "ties"
    assert by_name["model.norm.weight"] == "sum"
    assert by_name["model.embed_tokens.weight"] == "copied"
    assert told["methods"] == {"copied": len(by_name) - 5, "ties": 4, "sum": 1}
    assert json.loads(json.dumps(told)) == told


def test_what_is_read_and_written_is_what_the_files_hold(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    made = planned("tiny/base + tiny/a", inputs)
    told = explained(made, lambda methods: Rate(1000.0, "of a test"))
    folders = [inputs[Ref("tiny/base")].folder, inputs[Ref("tiny/a")].folder]
    weights = [folder.path(n) for folder in folders for n in folder.names() if n.endswith(".safetensors")]
    held = sum(tensor.nbytes for path in weights for tensor in load_file(path).values())
    assert told["read_bytes"] == held
    assert told["estimate"] == {
        "seconds": (held + made.size_bytes) / 1000,
        "bytes_per_s": 1000.0,
        "source": "of a test",
    }
    written = run(made, tmp_path / "out")
    assert {file.name: file.size_bytes for file in written.files}["model.safetensors"] == told["size_bytes"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == [one["name"] for one in told["per_tensor"]]


def test_methods_inside_of_methods_are_named(inputs: dict[Ref, Input]) -> None:
    told = explained(planned("ties(tiny/base; della(tiny/a, tiny/b, seed=4), tiny/m)", inputs))
    assert told["methods"]["ties(della)"] == 4
    [drawn] = [one for one in told["approximations"] if "random" in one]
    assert drawn.startswith("della: draws random masks by seed 4")


@pytest.mark.parametrize(
    ("expression", "dtype", "said"),
    [
        ("tiny/base + tiny/a", "bfloat16", "rounded once to bfloat16"),
        ("tsv_m(tiny/base; tiny/a, tiny/b)", None, "tsv_m: decomposes"),
    ],
)
def test_what_is_not_exact_is_told(expression: str, dtype: str | None, said: str, inputs: dict[Ref, Input]) -> None:
    assert any(said in one for one in explained(planned(expression, inputs, dtype=dtype))["approximations"])
    assert explained(planned("tiny/base + tiny/a", inputs))["approximations"] == []


def test_a_method_known_from_its_paper_alone_is_told(inputs: dict[Ref, Input], monkeypatch: pytest.MonkeyPatch) -> None:
    doubtful = {"ties": replace(methods()["ties"], is_experimental=True, source="arXiv:0000.00000")}
    monkeypatch.setattr(explain, "methods", lambda: doubtful)
    [told] = explain.approximations(planned("ties(tiny/base; tiny/a, tiny/b)", inputs))
    assert told == "ties: experimental, known from its paper alone (arXiv:0000.00000)"


def test_an_adapter_is_told_as_stored_or_joined_factors(inputs: dict[Ref, Input]) -> None:
    told = explained(planned("tiny/base + tiny/a + tiny/b", inputs, as_kind="lora"))
    assert told["methods"] == {"copied": 4, "joined factors": 4}
    assert told["estimate"]["source"] == STATED.source


def test_a_licence_is_told_and_is_no_part_of_the_recipe(inputs: dict[Ref, Input], tmp_path: Path) -> None:
    bare = planned("tiny/base + tiny/a", inputs)
    base = given(inputs[Ref("tiny/base")].folder.path("config.json").parent, "model")
    licensed = {**inputs, Ref("tiny/base"): Input(base.name, base.folder, licence="mit")}
    made = plan(parse("tiny/base + tiny/a"), licensed, memory_bytes=GIB)
    assert [one["licence"] for one in explained(made)["inputs"]] == ["mit", None]
    assert made.recipe_digest == bare.recipe_digest
