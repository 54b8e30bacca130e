"""LoFiT's edits of heads as weights, against W (z + k (A ⊙ z + v)) + b in float64, and where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterhub.merging import convert
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, NotFoldable
from adapterhub.merging.native_runtime import write_runtime
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DENSE_ON, DTYPES, check_dense, fold, record, roundings

OUTPUTS = {
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "bert": "bert.encoder.layer.{}.attention.output.dense",
    "llama": "model.layers.{}.self_attn.o_proj",
}


def made(
    name: str, fields: str, dtype: str, weight: float, tmp_path: Path
) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Base, patch, and the formula's parameters."""
    model = ARCHITECTURES[name].make(dtype=DTYPES[dtype])
    expected = {key: value.double() for key, value in model.state_dict().items()}
    modules = {}
    for layer in (0, 1):
        path = OUTPUTS[name].format(layer)
        width, flip = expected[f"{path}.weight"].shape[0], name == "gpt2"
        edits = {field: random(2, width // 2, seed=layer + ord(field)) * 0.3 for field in fields}
        modules[path] = {field: one.numpy() for field, one in edits.items()}
        W = expected[f"{path}.weight"].T if flip else expected[f"{path}.weight"]
        if "v" in fields:
            expected[f"{path}.bias"] = expected[f"{path}.bias"] + weight * (W @ edits["v"].double().flatten())
        if "A" in fields:
            W = W @ torch.diag(1 + weight * edits["A"].double().flatten())
            expected[f"{path}.weight"] = W.T if flip else W
    write_runtime(tmp_path / "patch", "lofit", modules=modules)
    return tiny.saved(model, tmp_path / "base"), tmp_path / "patch", expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, fields) for name in ("opt", "gpt2", "bert") for fields in ("A", "v", "Av")), ("llama", "A")],
)
def test_edits_of_heads_fold_by_the_formula(name: str, fields: str, weight: float, dtype: str, tmp_path: Path) -> None:
    base, patch, expected = made(name, fields, dtype, weight, tmp_path)
    text = "base + a" if weight == 1.0 else f"base + {weight}*a"
    out = fold(base, patch, tmp_path / "out", text=text)
    merged = ARCHITECTURES[name].loader.from_pretrained(out)
    error = roundings(merged.state_dict(), expected, DTYPES[dtype])
    record("lofit", name, dtype, "formula, float64", error)
    assert error <= 1.0
    if weight == 1.0 and name in DENSE_ON:
        check_dense("lofit", name, dtype, base, patch, expected, tmp_path)


def test_an_offset_without_a_bias_to_hold_it_is_refused_by_name(tmp_path: Path) -> None:
    width = ARCHITECTURES["llama"].make().state_dict()["model.layers.0.self_attn.o_proj.weight"].shape[1]
    base = tiny.saved(ARCHITECTURES["llama"].make(), tmp_path / "base")
    modules = {"model.layers.0.self_attn.o_proj": {"v": random(2, width // 2).numpy()}}
    write_runtime(tmp_path / "patch", "lofit", modules=modules)
    says = r"has no model\.layers\.0\.self_attn\.o_proj\.bias to hold it"
    with pytest.raises(NotFoldable, match=f"{says}; ask for"):
        fold(base, tmp_path / "patch", tmp_path / "out")
    with pytest.raises(NotFoldable, match=says):
        convert.read_patch(LocalFolder(tmp_path / "patch"), "", Checkpoint.open(LocalFolder(base), name="base"))


def test_conversion_asks_for_the_base(tmp_path: Path) -> None:
    _, patch, _ = made("opt", "v", "float32", 1.0, tmp_path)
    with pytest.raises(InvalidPatch, match="name it with --base FOLDER"):
        convert.read_patch(LocalFolder(patch), "", None)


def test_offsets_are_worked_out_for_the_base_s_own_projection(tmp_path: Path) -> None:
    base, patch, _ = made("opt", "v", "float32", 1.0, tmp_path)
    with pytest.raises(NotFoldable, match="must be the first of a sequence"):
        fold(base, patch, tmp_path / "out", text="sequence(base; a, a)")
