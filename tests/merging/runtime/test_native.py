"""Run-time patches in the native format: which are refused, what their facts are, and where an edit acts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.merging import patches, runtime
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidParameter, InvalidPatch, NotFoldable, UnknownSite
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging.runtime.cases import fresh

BLOCK = "model.layers.0"


def values(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reft(folder: Path, **options: Any) -> LocalFolder:
    fields = {"R": values(2, 16), "W": values(2, 16, seed=1), "b": values(2, seed=2)}
    write_runtime(folder, "reft", modules={BLOCK: fields}, options=options)
    return LocalFolder(folder)


def attach(folder: LocalFolder, model: Any, weight: float = 1.0) -> Any:
    (facts,) = patches.inspect(folder)
    assert facts.problems == ()
    return runtime.runtimes()[facts.kind].attach(model, folder, "", weight)


def hidden(model: Any, **given: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**given, output_hidden_states=True).hidden_states[1]
    return found


def test_an_edit_at_the_ends_leaves_the_middle(tmp_path: Path) -> None:
    model, ids = fresh("llama", "float32"), torch.arange(1, 9).view(1, 8)
    bare = hidden(model, input_ids=ids)
    attach(reft(tmp_path, positions="ends", first=2, last=1), model)
    found = hidden(model, input_ids=ids)
    assert torch.equal(found[:, 2:7], bare[:, 2:7])
    assert (found[:, [0, 1, 7]] != bare[:, [0, 1, 7]]).any(-1).all()


def test_the_ends_are_those_of_the_prompt_without_its_padding(tmp_path: Path) -> None:
    model = fresh("llama", "float32")
    ids, mask = torch.tensor([[0, 0, 1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    bare = hidden(model, input_ids=ids, attention_mask=mask)
    attach(reft(tmp_path, positions="ends", first=1, last=1), model)
    found = hidden(model, input_ids=ids, attention_mask=mask)
    assert [place for place in range(6) if (found[0, place] != bare[0, place]).any()] == [2, 5]


def test_generated_tokens_are_no_ends_of_the_prompt(tmp_path: Path) -> None:
    model, ids = fresh("llama", "float32"), torch.arange(1, 9).view(1, 8)
    attach(reft(tmp_path, positions="ends", first=1, last=1), model)
    options = {"max_new_tokens": 3, "do_sample": False, "output_hidden_states": True, "return_dict_in_generate": True}
    bare = fresh("llama", "float32")
    found, other = (one.generate(input_ids=ids, **options).hidden_states for one in (model, bare))
    assert not torch.equal(found[0][1], other[0][1])
    assert found[1][1].shape[1] == 1


@given(weight=st.floats(-3, 3), strength=st.floats(-3, 3))
def test_a_steering_vectors_weight_and_strength_multiply(
    weight: float, strength: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("steering")
    vector = values(16)
    write_runtime(folder, "steering", modules={BLOCK: {"vector": vector}}, options={"strength": strength})
    model, ids = fresh("llama", "float32"), torch.tensor([[1, 2, 3]])
    bare = hidden(model, input_ids=ids)
    attach(LocalFolder(folder), model, weight)
    expected = bare + weight * strength * torch.from_numpy(vector)
    torch.testing.assert_close(hidden(model, input_ids=ids), expected)


def test_a_voice_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    fields = {"scale.weight": values(16, 4), "shift.weight": values(16, 4, seed=1)}
    for count in (1, 3):
        shared = {"embeddings": values(count, 4, seed=2)}
        write_runtime(
            tmp_path / str(count), "conditional_norm", modules={"transformer.h.0.ln_1": fields}, shared=shared
        )
    model = fresh("gpt2", "float32")
    attach(LocalFolder(tmp_path / "1"), model)
    model(input_ids=torch.tensor([[1, 2]]))
    model = fresh("gpt2", "float32")
    attach(LocalFolder(tmp_path / "3"), model)
    with pytest.raises(InvalidParameter, match="speaker_ids"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_a_conditional_norm_takes_the_place_of_a_layer_norm_alone(tmp_path: Path) -> None:
    fields = {"scale.weight": values(16, 4), "shift.weight": values(16, 4, seed=1)}
    shared = {"embeddings": values(1, 4)}
    write_runtime(tmp_path, "conditional_norm", modules={f"{BLOCK}.input_layernorm": fields}, shared=shared)
    with pytest.raises(NotFoldable, match="LlamaRMSNorm; a conditional norm takes the place of a LayerNorm"):
        attach(LocalFolder(tmp_path), fresh("llama", "float32"))


@pytest.mark.parametrize(
    ("kind", "modules", "shared", "options", "problem"),
    [
        ("reft", {BLOCK: {"R": (2, 16), "W": (3, 16), "b": (2,)}}, {}, {}, "W is (3, 16); r is 2 elsewhere in it"),
        ("reft", {BLOCK: {"R": (2, 16), "b": (2,)}}, {}, {}, "has no W"),
        ("reft", {BLOCK: {"R": (2, 16), "W": (2, 16), "b": (2,), "x": (1,)}}, {}, {}, "x is none of R, W, b"),
        ("steering", {BLOCK: {"vector": (16, 1)}}, {}, {}, "vector is (16, 1); (d) is expected"),
        ("steering", {BLOCK: {"vector": (16,)}}, {}, {"strength": "2"}, "option strength is '2'; a number"),
        ("steering", {BLOCK: {"vector": (16,)}}, {}, {"power": 2}, "option 'power' is none of strength"),
        ("steering", {}, {"vector": (16,)}, {}, "holds no tensor of a module"),
        ("bottleneck", {BLOCK: {"down.weight": (4, 16), "up.weight": (16, 4)}}, {}, {"activation": "eval"}, "relu or"),
        ("ept", {}, {"prompt": (3, 16)}, {}, "has no A"),
    ],
)
def test_what_contradicts_itself_is_said_to(
    kind: str, modules: Any, shared: Any, options: Any, problem: str, tmp_path: Path
) -> None:
    write_runtime(
        tmp_path,
        kind,
        modules={path: {name: values(*shape) for name, shape in one.items()} for path, one in modules.items()},
        shared={name: values(*shape) for name, shape in shared.items()},
        options=options,
    )
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert facts.kind == kind
    assert problem in facts.problems[0]
    with pytest.raises(InvalidPatch):
        patches.read(LocalFolder(tmp_path))


def test_changed_weights_are_found_out(tmp_path: Path) -> None:
    folder = reft(tmp_path)
    file = tmp_path / "patch.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert "patch.json says" in facts.problems[0]
    assert folder.names() == ["patch.json", "patch.safetensors"]


def test_equal_patches_have_equal_bytes_and_digests(tmp_path: Path) -> None:
    one, other = reft(tmp_path / "a", positions="all"), reft(tmp_path / "b", positions="all")
    assert [one.read(name) for name in one.names()] == [other.read(name) for name in other.names()]
    assert patches.read(one).digest == patches.read(other).digest
    assert patches.read(one).digest != patches.read(reft(tmp_path / "c", positions="ends")).digest


def test_facts_of_a_run_time_patch(tmp_path: Path, llama_folder: Path) -> None:
    folder = reft(tmp_path, positions="ends", last=3)
    (facts,) = patches.inspect(folder)
    assert (facts.effect, facts.parameter_count, facts.dtypes) == ("runtime", 66, {"F32": 66})
    assert facts.detail == {"positions": "ends", "first": 0, "last": 3, "needs": []}
    assert patches.read(folder, base=Checkpoint.open(LocalFolder(llama_folder))).terms == ()


def test_a_base_without_the_module_is_refused(tmp_path: Path, gpt2_folder: Path) -> None:
    with pytest.raises(UnknownSite, match=BLOCK):
        patches.read(reft(tmp_path), base=Checkpoint.open(LocalFolder(gpt2_folder)))


def test_folding_is_refused_by_name(tmp_path: Path, llama_folder: Path) -> None:
    recipe = parse("base + a")
    inputs = {
        ref: Input(f"{ref.name}@{'0' * 40}", LocalFolder(llama_folder), kind="model")
        if ref.name == "base"
        else Input(f"{ref.name}@{'0' * 40}", reft(tmp_path), kind="reft")
        for ref in recipe.references()
    }
    with pytest.raises(NotFoldable, match="a reft works at run time"):
        plan(recipe, inputs, memory_bytes=1 << 30)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("side_model", {"architecture": "MLP of 2 layers", "reads": "hidden states of all layers", "combines": "sum"}),
        ("hypernetwork", {"architecture": "Transformer", "generates": "LoRA of q_proj", "conditioned_on": "a label"}),
    ],
)
def test_models_beside_a_base_are_described_and_not_run(kind: str, options: dict[str, str], tmp_path: Path) -> None:
    write_runtime(
        tmp_path, kind, shared={"layers.0.weight": values(4, 8), "layers.1.weight": values(2, 4)}, options=options
    )
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert (facts.kind, facts.problems, facts.parameter_count) == (kind, (), 40)
    assert facts.detail["architecture"] == options["architecture"]
    assert patches.read(LocalFolder(tmp_path)).terms == ()
    assert kind not in runtime.runtimes()
    manifest = json.loads((tmp_path / "patch.json").read_text())
    del manifest["runtime"]["options"]["architecture"]
    (tmp_path / "patch.json").write_text(json.dumps(manifest))
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert "option architecture is 'None'; a text is expected" in facts.problems[0]
