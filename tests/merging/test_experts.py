"""LoRAs as experts of one routed patch: each row computes as its own LoRA alone would, here and in peft."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub.merging import patches, runtime
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import InvalidParameter, NotRepresentable
from adapterhub.merging.experts import Experts, write_declared
from adapterhub.merging.folders import LocalFolder
from tests.merging import tiny
from tests.merging.exactness.compare import record

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A base and LoRAs of rank 4 and 2 on it, of other modules each, and the routed patch of both."""
    tiny.saved(tiny.llama(), tmp_path / "base")
    tiny.adapter(tiny.llama(), tmp_path / "code", seed=1, target_modules=["q_proj", "v_proj"])
    tiny.adapter(tiny.llama(), tmp_path / "law", seed=2, target_modules=["q_proj", "down_proj"], r=2, lora_alpha=5)
    write_declared(Experts.of(read(tmp_path, "code", "law"), base(tmp_path)), tmp_path / "experts")
    return tmp_path


def base(folder: Path) -> Checkpoint:
    return Checkpoint.open(LocalFolder(folder / "base"), name="base")


def read(folder: Path, *names: str) -> dict[str, Any]:
    return {name: patches.read(LocalFolder(folder / name), base=base(folder)) for name in names}


def model(folder: Path, adapter: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    found: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
    if adapter is None:
        return found.eval()
    tuned: Any = peft.PeftModel.from_pretrained(found, str(folder / adapter))
    return tuned.eval()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("bfloat16", 3e-2)])
def test_each_row_computes_as_its_own_lora_alone(made: Path, dtype: str, most: float) -> None:
    facts = next(iter(patches.inspect(LocalFolder(made / "experts"))))
    assert (facts.kind, facts.problems) == ("poly", ())
    stored = getattr(torch, dtype)
    routed = model(made, dtype=stored)
    before = routed(IDS).logits
    detach = runtime.runtimes()["poly"].attach(routed, LocalFolder(made / "experts"), "", 1.0)
    found = routed(IDS, task_ids=torch.tensor([0, 1])).logits
    swapped = routed(IDS, task_ids=torch.tensor([1, 0])).logits
    detach()
    assert torch.equal(routed(IDS).logits, before)
    code, law = (model(made, name, stored)(IDS).logits for name in ("code", "law"))
    pairs = (found[0], code[0]), (found[1], law[1]), (swapped[0], law[0])
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    assert worst < most
    assert float((code[0] - law[0]).abs().max() / code[0].abs().max()) > 2 * most
    record("poly", "llama", dtype, f"peft {peft.__version__} lora", worst, "logits")


@torch.no_grad()
def test_peft_loads_the_patch_and_computes_the_same(made: Path) -> None:
    tasks = torch.tensor([1, 0])
    by_peft = model(made, "experts")(input_ids=IDS, task_ids=tasks).logits
    alone = torch.stack([model(made, "law")(IDS).logits[0], model(made, "code")(IDS).logits[1]])
    assert torch.allclose(by_peft, alone, atol=1e-5)


def test_what_is_no_lora_is_no_expert(made: Path) -> None:
    with pytest.raises(InvalidParameter, match="1 experts"):
        write_declared(Experts.of(read(made, "code"), base(made)), made / "one")
    saved: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}
    tiny.adapter(tiny.llama(), made / "norm", **saved)
    with pytest.raises(NotRepresentable, match=r"norm: model.layers.0.input_layernorm.weight has a replace term"):
        write_declared(Experts.of(read(made, "code", "norm"), base(made)), made / "one")
    assert not (made / "one").exists()
