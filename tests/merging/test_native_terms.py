"""Every term in the native format: read back bit for bit, and refused by a sentence where it contradicts itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.merging import native, patches
from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import BaseMismatch, InvalidPatch
from adapterhub.merging.json_schema import WORDS
from adapterhub.merging.manifest import schema
from adapterhub.merging.native_runtime import write_runtime
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.terms import terms
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.native_terms import MAKERS, SHARED


def in_bfloat16(term: native.StoredTerm) -> native.StoredTerm:
    """The term with its float32 numbers cut to bfloat16, as bits."""
    fields = {
        name: ("BF16", (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16))
        if dtype == "F32"
        else (dtype, array)
        for name, (dtype, array) in term.fields.items()
    }
    return replace(term, fields=fields)


def test_every_term_has_a_kind_of_patch() -> None:
    assert terms().keys() <= MAKERS.keys()
    assert MAKERS.keys() <= patches.kinds().keys()


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=15)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 2**20), is_bfloat16=st.booleans())
def test_every_term_is_read_back_bit_for_bit(
    kind: str, rows: int, columns: int, seed: int, is_bfloat16: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    stored, _ = MAKERS[kind](random(rows, columns, seed=seed), seed)
    stored = replace(in_bfloat16(stored) if is_bfloat16 else stored, scale=1.0 if kind == "xor" else 0.75)
    shared = SHARED if kind == "lowrank_shared" else {}
    native.write_patch(folder, sites={"layers.0.w": stored}, base={}, shared=shared)
    (facts,) = patches.inspect(LocalFolder(folder))
    assert (facts.kind, facts.problems) == (kind, ())
    (found,) = patches.read(LocalFolder(folder)).terms
    assert (found.term, found.scale, found.options) == (stored.kind, stored.scale, stored.options)
    for name, (dtype, array) in stored.fields.items():
        handle = found.fields[name]
        assert (handle.dtype, handle.shape) == (dtype, array.shape)
        assert bytes(handle.read()) == array.tobytes()
    assert found.fields.keys() == stored.fields.keys() | stored.shared.keys()
    for name in stored.shared:  # the corner of the bank that this parameter needs
        size = found.fields[name].shape
        expected = SHARED["factors"][name][: size[0], : size[1]]
        assert bytes(found.fields[name].read()) == np.ascontiguousarray(expected).tobytes()


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "patch.json").read_text())
    return found


def problem_after(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """The problem that inspecting finds once patch.json is changed; reading must refuse with the same words."""
    manifest = manifest_of(folder)
    change(manifest)
    (folder / "patch.json").write_text(json.dumps(manifest))
    (facts,) = patches.inspect(LocalFolder(folder))
    (problem,) = facts.problems
    with pytest.raises(InvalidPatch) as refusal:
        patches.read(LocalFolder(folder))
    assert str(refusal.value) == problem
    return problem


def first(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["sites"]["w"]["terms"][0]
    return found


def write(folder: Path, *kinds: str) -> None:
    W = random(12, 8, seed=1)
    shared = SHARED if "lowrank_shared" in kinds else {}
    native.write_patch(folder, sites={"w": [MAKERS[kind](W, 3)[0] for kind in kinds]}, base={}, shared=shared)


@pytest.mark.parametrize(
    ("kinds", "change", "says"),
    [
        (["xor"], lambda m: first(m).update(scale=0.5), "exact bits: it acts alone and with scale 1"),
        (["xor"], lambda m: first(m).pop("base_digest"), "has no base_digest"),
        (["xor"], lambda m: first(m).update(dtype="I8"), "'I8'"),
        (["seeded"], lambda m: first(m).pop("seed"), "has no seed"),
        (["seeded"], lambda m: first(m).update(seed=-1), "seed"),
        (["seeded"], lambda m: first(m).update(projection="pickle"), "'pickle'"),
        (["trajectory"], lambda m: first(m).update(dist="normal"), "torch-cpu gives normal"),
        (["trajectory"], lambda m: first(m).update(rng="torch-cpu", dist="normal"), "no materialised_sha256"),
        (["signs"], lambda m: m["sites"]["w"].update(shape=[12, 9]), "sign is"),
        (["scale"], lambda m: first(m).update(transpose=True), "col is (8,); (in = 12) is expected"),
        (["lowrank"], lambda m: first(m).update(exec="import os"), "unknown key 'exec'"),
        (["lowrank"], lambda m: m.update(kind="lowrank", effect="affine"), "its terms make it 'additive'"),
        (["lowrank"], lambda m: m.update(foldable=False), "foldable is false"),
        (["lowrank"], lambda m: m["sites"].update({"@shared": m["sites"]["w"]}), "is no parameter's name"),
        (["lowrank_shared"], lambda m: first(m)["shared"].update(A="nowhere.A"), "no tensor @shared::nowhere.A"),
        (["lowrank", "scale"], lambda m: m["sites"]["w"].pop("sequence"), "must be named there in the order"),
        (["lowrank", "scale"], lambda m: m["sites"]["w"].update(sequence=["t0", "t1"]), "its sequence is"),
        (["lowrank", "dense"], lambda m: m["sites"]["w"].update(sequence=["t0"]), "only [] change W"),
        (["lowrank", "dense"], lambda m: m["sites"]["w"]["terms"][1].update(id="t0"), "two of its terms have one id"),
    ],
)
def test_a_manifest_against_the_rules_is_a_problem(
    kinds: list[str], change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path
) -> None:
    write(tmp_path, *kinds)
    assert says in problem_after(tmp_path, change)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sign": np.full((1, 2), 255, np.uint8), "scale": np.ones((1, 1, 1), np.float32)}, "signs: "),
        ({"sign": np.zeros((1, 2), np.uint8), "scale": -np.ones((1, 1, 1), np.float32)}, "negative or not finite"),
        ({"sign": np.zeros((0, 2), np.uint8), "scale": np.ones((0, 1, 1), np.float32)}, "has no level of signs"),
        ({"sign": np.zeros((1, 2), np.uint8), "scale": np.ones((1, 2, 1), np.float32)}, "scale has 2 rows"),
        ({"sign": np.zeros((1, 2), np.uint8), "scale": np.ones((1, 1, 2), np.float32)}, "do not divide 3"),
    ],
)
def test_signs_that_do_not_fit_are_not_written(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    typed = {"sign": ("U8", fields["sign"]), "scale": ("F32", fields["scale"])}
    with pytest.raises(InvalidPatch, match=says):
        native.write_patch(tmp_path, sites={"w": native.StoredTerm("signs", (3, 3), typed)}, base={})


def test_a_mask_takes_the_delta_of_another_patch_of_the_repository(tmp_path: Path) -> None:
    delta = random(6, 4, seed=2).numpy()
    digest = native.write_patch(tmp_path / "all", sites={"w": native.term("dense", (6, 4), delta=delta)}, base={})
    bits = native.prune(delta > 0).fields["bits"]
    one = native.term("mask", (6, 4), options={"mode": "select"}, delta_ref=digest, bits=bits)
    native.write_patch(tmp_path / "one", sites={"w": one}, base={})
    (found,) = native.read_patch(LocalFolder(tmp_path), "one").terms
    assert bytes(found.fields["delta"].read()) == delta.tobytes()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
        ("nf4", "nf4"),
        (None, "none"),
    ],
)
def test_the_base_s_quantisation_is_read_as_in_a_model_s_config(said: Any, expected: str, tmp_path: Path) -> None:
    native.write_patch(tmp_path, sites={"w": native.prune(np.eye(3) > 0)}, base={"quantization": said})
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert facts.base.quantisation == expected


# ---- contract, parts, predecessors -----------------------------------------------------------------------------------


def test_contract_training_and_parts_are_facts(tmp_path: Path) -> None:
    contract = {"chat_template": "{{ messages }}", "label_map": {"0": "no", "1": "yes"}, "sampling_rate": 16_000}
    training = {"method": "DPO", "data": ["demo/pairs"], "energy_kwh": 1.5}
    parts: list[dict[str, Any]] = [{"name": "first", "sites": ["w"]}, {"name": "prompt", "path": "prompt"}]
    sites = {name: native.prune(np.eye(3) > 0) for name in ("w", "v")}
    native.write_patch(tmp_path, sites=sites, base={}, contract=contract, training=training, parts=parts)
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert (facts.contract, facts.training, facts.parts) == (contract, training, ("first", "prompt"))
    assert [one.site for one in native.read_patch(LocalFolder(tmp_path), part="first").terms] == ["w"]
    with pytest.raises(InvalidPatch, match="a patch of its own, in 'prompt'"):
        native.read_patch(LocalFolder(tmp_path), part="prompt")
    with pytest.raises(InvalidPatch, match="no part 'other'; it has first, prompt"):
        native.read_patch(LocalFolder(tmp_path), part="other")


def test_a_prompt_and_its_delta_are_used_together_or_each_alone(tmp_path: Path) -> None:
    """ProMoT (arXiv:2211.00635) keeps a soft prompt beside the delta; LiST a pattern beside the adapter."""
    delta = {name: native.term("dense", (3, 3), delta=random(3, 3).numpy()) for name in ("v", "w")}
    parts: list[dict[str, Any]] = [{"name": "delta", "sites": ["w"]}, {"name": "prompt", "path": "prompt"}]
    contract = {"pattern": "{text} It was {mask}.", "verbalizer": {"good": "great"}}
    native.write_patch(tmp_path, sites=delta, base={}, contract=contract, parts=parts)
    write_runtime(tmp_path / "prompt", "steering", modules={"h.0": {"vector": random(3).numpy()}})
    whole, prompt = patches.inspect(LocalFolder(tmp_path))
    assert (whole.parts, whole.contract, whole.problems) == (("delta", "prompt"), contract, ())
    assert (prompt.path, prompt.kind, prompt.effect) == ("prompt", "steering", "runtime")
    alone, both = native.read_patch(LocalFolder(tmp_path), part="delta"), native.read_patch(LocalFolder(tmp_path))
    assert [one.site for one in alone.terms] == ["w"]
    assert [one.site for one in both.terms] == ["v", "w"]
    assert len({alone.digest, both.digest}) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"contract": {"exec": "rm"}}, "unknown key 'exec'"),
        ({"contract": {"sampling_rate": 0}}, "a number from 1 to"),
        ({"contract": {"label_map": {"yes": "1"}}}, "label_map"),
        ({"training": {"cost": -1}}, "a number from 0 to"),
        ({"parts": [{"summary": "nameless"}]}, "has no name"),
    ],
)
def test_a_contract_outside_the_schema_is_not_written(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidPatch, match=says):
        native.write_patch(tmp_path, sites={"w": native.prune(np.eye(3) > 0)}, base={}, **more)


def test_a_patch_on_top_of_another_is_not_folded_without_it(tmp_path: Path) -> None:
    tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "base")
    site = "model.layers.0.self_attn.q_proj.weight"
    shape = (16, 16)
    sft = native.write_patch(
        tmp_path / "sft", sites={site: native.sparse(np.eye(16, dtype=np.float32))}, base={"repo_id": "demo/base"}
    )
    needs = {
        "repo_id": "demo/base",
        "recipe": "demo/base + demo/sft",
        "requires": [{"name": "demo/sft", "digest": sft}],
    }
    dpo = native.term("dense", shape, delta=random(*shape, seed=1).numpy())
    native.write_patch(tmp_path / "dpo", sites={site: dpo}, base=needs)

    def fold(text: str) -> None:
        recipe = parse(text)
        kinds = {"base": "model", "sft": "sparse", "dpo": "dense"}
        inputs = {
            ref: Input(f"demo/{ref.name}@{'0' * 40}", LocalFolder(tmp_path / ref.name), kind=kinds[ref.name])
            for ref in recipe.references()
        }
        plan(recipe, inputs, memory_bytes=1 << 30)

    fold("base + sft + dpo")
    with pytest.raises(BaseMismatch, match=r"demo/dpo.*trained on top of demo/sft, on demo/base \+ demo/sft"):
        fold("base + dpo")


def test_the_schema_uses_no_word_that_is_not_checked() -> None:
    """Properties' names aside, every key of the schema is a word that `json_schema.problem` obeys."""

    def check(one: Any) -> None:
        if not isinstance(one, dict):
            return
        assert one.keys() <= WORDS
        for word, value in one.items():
            for inner in value.values() if word == "properties" else value if word == "allOf" else [value]:
                if word in ("properties", "allOf", "items", "additionalProperties", "propertyNames", "if", "then"):
                    check(inner)

    check(schema())
