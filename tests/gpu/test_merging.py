"""Folds and merge methods on a GPU: within one rounding of the CPU's, the resident base untouched."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.merging import engine
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.effects import read
from adapterhub.merging.errors import MergingError
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.methods import methods
from adapterhub.merging.ops.uploads import PIECE_BYTES, uploaded
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.merging import tiny
from tests.merging.exactness.compare import DTYPES, roundings

pytestmark = pytest.mark.gpu

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CLOSE = {"karcher": 2.0, "wudi": 2.0}
"""Methods that iterate, so that a difference of rounding grows: roundings that are allowed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in float32 and one in bfloat16, three LoRAs and two full models on it."""
    root = tmp_path_factory.mktemp("gpu")
    for name, dtype in DTYPES.items():
        tiny.saved(tiny.llama(dtype=dtype), root / f"base-{name}")
        for number in (1, 2):
            model: Any = tiny.llama(dtype=torch.float32)
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
            tiny.saved(model.to(dtype), root / f"full{number}-{name}")
    for number in range(3):
        tiny.adapter(tiny.llama(), root / f"lora{number}", seed=number + 1, target_modules=ALL)
    return root


def planned(folder: Path, expression: str, dtype: str) -> Plan:
    inputs = {}
    for ref in parse(expression).references():
        name = ref.name if "lora" in ref.name else f"{ref.name}-{dtype}"
        inputs[ref] = Input(ref.name, LocalFolder(folder / name), kind="lora" if "lora" in ref.name else "model")
    return plan(parse(expression), inputs, memory_bytes=1 << 30)


def check(folder: Path, expression: str, dtype: str, device: torch.device, most: float = 1.0) -> None:
    """Raises AssertionError where the device's result is more than so many roundings from the CPU's."""
    made = planned(folder, expression, dtype)
    stored = Checkpoint.open(LocalFolder(folder / f"base-{dtype}")).tensors
    resident = {name: read(handle).clone().to(device) for name, handle in stored.items()}
    before = {name: tensor.clone() for name, tensor in resident.items()}
    there = engine.variant(made, device=str(device), base=resident)
    here = engine.variant(made)
    assert there
    assert {tensor.device.type for tensor in there.values()} == {device.type}
    worst = roundings({name: tensor.cpu() for name, tensor in there.items()}, here, DTYPES[dtype])
    assert worst <= most, f"{expression} in {dtype}: {worst:.2f} roundings"
    assert all(torch.equal(resident[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("expression", ["base + lora0", "base + 0.7*lora0 - 0.3*lora1 + lora2", "base + 0.5*full1"])
def test_a_fold_is_the_cpus(folder: Path, device: torch.device, expression: str, dtype: str) -> None:
    check(folder, expression, dtype, device)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("inputs", ["lora0, lora1", "full1, full2"])
@pytest.mark.parametrize("method", sorted(methods()))
def test_every_method_is_the_cpus(folder: Path, device: torch.device, method: str, inputs: str, dtype: str) -> None:
    spec = methods()[method]
    several = inputs.split(", ")[: spec.inputs[1] or 2]
    expression = f"{method}(base; {', '.join(several)})"
    try:
        planned(folder, expression, dtype)
    except MergingError as error:
        pytest.skip(f"needs more than these inputs: {error}")
    check(folder, expression, dtype, device, CLOSE.get(method, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_tensors_arrive_as_they_are_while_more_are_on_their_way(device: torch.device, dtype: torch.dtype) -> None:
    sizes = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 3]
    sent = [torch.randint(0, 2 if dtype == torch.bool else 100, (size,)).to(dtype) for size in sizes]
    there = [uploaded(one, device) for one in sent]
    sums = [one.double().sum() for one in there]  # used at once, on the current stream
    for one, arrived, total in zip(sent, there, sums, strict=True):
        assert arrived.device.type == device.type
        assert torch.equal(arrived.cpu(), one)
        assert float(total) == float(one.double().sum())
