"""The native format: what is written is read back, and what contradicts itself is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from adapterhub.merging import encodings, native, patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder, TensorHandle
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch, UnknownSite

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9)
masks = shapes.flatmap(lambda shape: hnp.arrays(bool, shape))


def base_of(**shapes: tuple[int, ...]) -> Checkpoint:
    names = {name.replace("_", "."): shape for name, shape in shapes.items()}
    return Checkpoint(
        {
            name: TensorHandle.of_bytes(name, "F32", shape, bytes(4 * int(np.prod(shape))))
            for name, shape in names.items()
        }
    )


def write_example(folder: Path) -> str:
    rng = np.random.default_rng(0)
    delta = np.where(rng.random((6, 8)) < 0.1, rng.normal(size=(6, 8)), 0.0).astype(np.float32)
    return native.write_patch(
        folder,
        sites={"layers.0.weight": native.sparse(delta, scale=0.5), "layers.1.bias": native.sparse(delta[0] + 1)},
        base={"repo_id": "tiny/base", "revision": "a" * 40, "fingerprint": {"root": "sha256:00", "params": {}}},
    )


def test_a_sparse_patch_is_read_back(tmp_path: Path) -> None:
    digest = write_example(tmp_path / "one")
    assert write_example(tmp_path / "two") == digest
    assert (tmp_path / "one/patch.safetensors").read_bytes() == (tmp_path / "two/patch.safetensors").read_bytes()
    (facts,) = patches.inspect(LocalFolder(tmp_path / "one"))
    assert (facts.kind, facts.base.name, facts.base.fingerprint) == ("sparse", "tiny/base", "sha256:00")
    assert facts.layers == {"0": 1, "1": 1}
    assert facts.problems == ()
    patch = patches.read(LocalFolder(tmp_path / "one"), base=base_of(layers_0_weight=(6, 8), layers_1_bias=(8,)))
    assert patch.digest == digest
    assert [(term.site, term.term, term.scale) for term in patch.terms] == [
        ("layers.0.weight", "sparse", 0.5),
        ("layers.1.bias", "sparse", 1.0),
    ]
    assert patch.terms[0].options == {"index": "bitmap"} or patch.terms[0].options == {"index": "csr16"}


def test_terms_of_several_kinds_make_a_sum(tmp_path: Path) -> None:
    delta = np.eye(4, dtype=np.float32)
    both = [native.sparse(delta), native.select(delta > 0, delta)]
    native.write_patch(tmp_path, sites={"w": both, "v": native.sparse(delta[0])}, base={})
    patch = patches.read(LocalFolder(tmp_path), base=base_of(w=(4, 4), v=(4,)))
    assert patch.facts.kind == "sum"
    assert [(term.site, term.term) for term in patch.terms] == [("v", "sparse"), ("w", "sparse"), ("w", "mask")]


@settings(max_examples=25)
@given(selected=masks, dtype=st.sampled_from(["F16", "F32", "F64"]))
def test_a_mask_patch_is_read_back(selected: Any, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mask")
    delta = np.arange(selected.size, dtype=np.float32).reshape(selected.shape)
    native.write_patch(folder, sites={"w": native.select(selected, delta, dtype=dtype)}, base={})
    (term,) = native.read_patch(LocalFolder(folder), kind="mask").terms
    assert (term.term, term.options) == ("mask", {"mode": "select"})
    assert np.array_equal(encodings.as_array(term.fields["delta"]), delta)
    bits = encodings.as_array(term.fields["bits"])
    assert np.array_equal(encodings.unpack_bits(bits, selected.size).reshape(selected.shape), selected)


def test_a_patch_for_another_base_is_refused(tmp_path: Path) -> None:
    write_example(tmp_path)
    with pytest.raises(ShapeMismatch, match=r"layers\.0\.weight"):
        patches.read(LocalFolder(tmp_path), base=base_of(layers_0_weight=(8, 6), layers_1_bias=(8,)))
    with pytest.raises(UnknownSite, match=r"layers\.1\.bias"):
        patches.read(LocalFolder(tmp_path), base=base_of(layers_0_weight=(6, 8)))


def test_names_may_lack_the_base_s_first_part(tmp_path: Path) -> None:
    write_example(tmp_path)
    base = base_of(model_layers_0_weight=(6, 8), model_layers_1_bias=(8,), lm_head=(2,))
    patch = patches.read(LocalFolder(tmp_path), base=base)
    assert [term.site for term in patch.terms] == ["model.layers.0.weight", "model.layers.1.bias"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda manifest: manifest["files"]["patch.safetensors"].update(sha256="00"), "patch.json says 00"),
        (lambda manifest: manifest["sites"].pop("layers.1.bias"), "belongs to no term"),
        (lambda manifest: manifest["sites"]["layers.1.bias"].update(shape="x"), "shape is 'x'; a list is expected"),
        (lambda manifest: manifest["sites"]["layers.1.bias"]["terms"][0].update(kind="magic"), "term kind 'magic'"),
        (
            lambda manifest: manifest["sites"]["layers.1.bias"]["terms"][0].update(index="flat"),
            "are expected of index 'flat'",
        ),
        (lambda manifest: manifest["sites"]["layers.1.bias"]["terms"][0].update(scale="2"), "scale is '2'"),
        (
            lambda manifest: manifest["sites"].update(ghost={"shape": [1], "terms": [{"id": "t0", "kind": "sparse"}]}),
            "ghost",
        ),
    ],
)
def test_a_manifest_that_contradicts_its_tensors_is_a_problem_and_not_read(
    change: Any, says: str, tmp_path: Path
) -> None:
    write_example(tmp_path)
    manifest = json.loads((tmp_path / "patch.json").read_text())
    change(manifest)
    (tmp_path / "patch.json").write_text(json.dumps(manifest))
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert says in facts.problems[0]
    with pytest.raises(InvalidPatch, match=says):
        patches.read(LocalFolder(tmp_path))


def test_a_tensor_of_another_dtype_is_refused(tmp_path: Path) -> None:
    write_example(tmp_path)
    manifest = json.loads((tmp_path / "patch.json").read_text())
    tensors = load_file(tmp_path / "patch.safetensors")
    tensors["layers.1.bias::t0.bits"] = tensors["layers.1.bias::t0.bits"].astype(np.int32)
    save_file(tensors, tmp_path / "patch.safetensors")
    digest = LocalFolder(tmp_path).digest("patch.safetensors").removeprefix("sha256:")
    manifest["files"]["patch.safetensors"]["sha256"] = digest
    (tmp_path / "patch.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidPatch, match=r"layers\.1\.bias: bits has dtype I32; U8 is expected"):
        patches.read(LocalFolder(tmp_path))


def test_another_version_of_the_format_is_not_guessed_at(tmp_path: Path) -> None:
    write_example(tmp_path)
    manifest = json.loads((tmp_path / "patch.json").read_text())
    (tmp_path / "patch.json").write_text(json.dumps({**manifest, "format_version": 2}))
    assert patches.inspect(LocalFolder(tmp_path)) == []
    with pytest.raises(InvalidPatch, match="no patch of a known kind"):
        patches.read(LocalFolder(tmp_path))


def test_a_patch_without_terms_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidPatch, match="at least one term"):
        native.write_patch(tmp_path, sites={}, base={})
