"""mlx-lm's adapters against the formula of its own `fuse`, in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.merging import patches
from adapterhub.merging.checkpoint import Checkpoint, LocalFolder
from adapterhub.merging.errors import InvalidPatch, ShapeMismatch
from tests.merging import tiny
from tests.merging.build import random
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.compare import DTYPES, check_dense, check_lora, fold, record, roundings

PARAMETERS = {"rank": 3, "scale": 20.0, "dropout": 0.0}
Q, DOWN, TOKENS = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.embed_tokens"
SHAPES = {Q: (16, 16), DOWN: (16, 24), TOKENS: (32, 16)}


def adapter(folder: Path, *, kind: str = "lora", modules: tuple[str, ...] = (Q, DOWN), **config: Any) -> Path:
    """An adapter as `mlx_lm.lora` writes it."""
    tensors: dict[str, torch.Tensor] = {}
    for number, module in enumerate(modules):
        rows, columns = SHAPES[module]
        a, b = (rows, columns) if module == TOKENS else (columns, rows)
        tensors[f"{module}.lora_a"] = random(a, 3, seed=number) * 0.05
        tensors[f"{module}.lora_b"] = random(3, b, seed=number + 10) * 0.05
        if kind == "dora":
            tensors[f"{module}.m"] = random(rows, seed=number + 20).abs()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors", {"format": "mlx"})
    said = {"fine_tune_type": kind, "lora_parameters": PARAMETERS, "model": "tiny/base", "num_layers": 2}
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


def fused(W: torch.Tensor, module: str, folder: Path) -> torch.Tensor:
    """What mlx-lm's `fuse` makes of a weight, in float64."""
    tensors = {name: tensor.double() for name, tensor in load_file(folder / "adapters.safetensors").items()}
    a, b = tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"]
    if module == TOKENS:
        return W.double() + PARAMETERS["scale"] * a @ b
    result = W.double() + (PARAMETERS["scale"] * b.T) @ a.T
    if f"{module}.m" in tensors:
        result = (tensors[f"{module}.m"] / result.norm(dim=1))[:, None] * result
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "modules"), [("lora", (Q, DOWN, TOKENS)), ("dora", (Q, DOWN))])
def test_it_folds_as_mlx_fuses(kind: str, modules: tuple[str, ...], dtype: str, tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES["llama"].make(dtype=DTYPES[dtype]), tmp_path / "base")
    patch = adapter(tmp_path / "patch", kind=kind, modules=modules)
    before = load_file(base / "model.safetensors")
    found = load_file(fold(base, patch, tmp_path / "out") / "model.safetensors")
    expected = {name: W.double() for name, W in before.items()}
    expected |= {f"{one}.weight": fused(before[f"{one}.weight"], one, patch) for one in modules}
    error = roundings(found, expected, DTYPES[dtype])
    record("mlx" if kind == "lora" else "mlx (dora)", "llama", dtype, "mlx-lm's fuse, float64", error)
    assert error <= 1.0
    check_dense("mlx", "llama", dtype, base, patch, expected, tmp_path)
    if dtype == "float32":
        check_lora("mlx", ARCHITECTURES["llama"], base, patch, expected, tmp_path)


def test_the_null_metadata_that_mlx_writes_is_none(tmp_path: Path) -> None:
    file = adapter(tmp_path) / "adapters.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode().rstrip().replace('{"format":"mlx"}', "null").ljust(length).encode()
    assert b'"__metadata__":null' in header
    file.write_bytes(raw[:8] + header + raw[8 + length :])
    (facts,) = patches.inspect(LocalFolder(tmp_path))
    assert facts.problems == ()


def test_a_full_fine_tune_replaces_parameters(tmp_path: Path) -> None:
    base = tiny.saved(tiny.llama(), tmp_path / "base")
    value = random(16, 16)
    save_file({f"{Q}.weight": value}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full", "num_layers": 2}))
    patch = tmp_path / "patch"
    patch.mkdir()
    for name in ("adapters.safetensors", "adapter_config.json"):
        (tmp_path / name).rename(patch / name)
    found = load_file(fold(base, patch, tmp_path / "out") / "model.safetensors")
    assert torch.equal(found[f"{Q}.weight"], value)


def test_facts_name_the_base_the_rank_and_the_scale(tmp_path: Path) -> None:
    (facts,) = patches.inspect(LocalFolder(adapter(tmp_path)))
    assert (facts.kind, facts.base.name, facts.rank_max, facts.problems) == ("mlx", "tiny/base", 3, ())
    assert (facts.detail["scale"], facts.targets) == (20.0, ("down_proj", "q_proj"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"lora_parameters": {"rank": 3, "alpha": 6}}, "has no scale"),
        ({"lora_parameters": {"rank": 3, "scale": -1}}, "scale is -1"),
        ({"lora_parameters": 5}, "lora_parameters is 5"),
    ],
)
def test_a_configuration_that_mlx_would_not_load_is_a_problem(config: Any, says: str, tmp_path: Path) -> None:
    folder = LocalFolder(adapter(tmp_path, **config))
    assert says in patches.inspect(folder)[0].problems[0]
    with pytest.raises(InvalidPatch, match=says):
        patches.read(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{Q}.lora_a": None}, "not both lora_a and lora_b"),
        ({f"{Q}.lora_a": torch.zeros(3, 16, 3)}, "several experts"),
        ({f"{Q}.lora_a": torch.zeros(16, 4)}, r"(in, r) and (r, out)"),
        ({"stray": torch.zeros(2)}, "tensor stray is no part of an adapter"),
        ({f"{Q}.lora_a": torch.zeros(16, 3, dtype=torch.int32)}, "floats are expected"),
    ],
    ids=str,
)
def test_tensors_that_do_not_go_together_are_a_problem(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = load_file(adapter(tmp_path) / "adapters.safetensors") | change
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, tmp_path / "adapters.safetensors")
    assert says in patches.inspect(LocalFolder(tmp_path))[0].problems[0]


def test_another_base_is_refused_by_shape(tmp_path: Path) -> None:
    base = tiny.saved(ARCHITECTURES["llama"].make(hidden_size=32), tmp_path / "base")
    with pytest.raises(ShapeMismatch, match="q_proj"):
        patches.read(LocalFolder(adapter(tmp_path / "a")), base=Checkpoint.open(LocalFolder(base)))
