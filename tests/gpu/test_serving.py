"""Variants of one base on a GPU: the base is restored bit for bit, and no variant answers for another."""

from typing import Any

import pytest
import torch

from adapterhub.hub.serving.mixture import Adapter
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME
from adapterhub.hub.serving.residents import Residents
from tests.hub.serving import models
from tests.hub.serving.passes import by_transformers, greedy, texts
from tests.hub.serving.test_batching import PROMPTS, tuned

pytestmark = pytest.mark.gpu

TARGETS = (("q_proj", "v_proj"), ("o_proj", "down_proj"), ("q_proj", "gate_proj"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Specs of the base and of three LoRAs on it, and what peft makes of each on the CPU."""
    root = tmp_path_factory.mktemp("variants")
    base = models.llama(root / "base")
    source = models.source("demo/base", base)
    specs, merged = [models.spec("demo/base", source)], [tuned(base, None)]
    for number, names in enumerate(TARGETS):
        adapter = models.lora(base, root / f"l{number}", seed=number + 1, targets=names)
        own = models.source(f"demo/l{number}", adapter, "lora")
        specs.append(models.spec(f"demo/base + demo/l{number}", source, own))
        merged.append(tuned(base, adapter))
    return specs, merged


@pytest.mark.parametrize("how", [MERGED, RUN_TIME])
def test_variants_answer_as_peft_merges_them_and_never_for_each_other(
    made: tuple[list[Any], list[Any]], device: torch.device, how: str
) -> None:
    specs, merged = made
    residents = Residents(device, 1 << 30)
    leases = [residents.lease(spec, how) for spec in specs[1:]]
    assert all(isinstance(lease.variant, Adapter) == (how == RUN_TIME) for lease in leases)
    found = texts(leases, [greedy(prompt, 12) for prompt in PROMPTS[:3]])
    expected = [by_transformers(model, prompt, 12) for model, prompt in zip(merged[1:], PROMPTS[:3], strict=True)]
    assert found == expected
    assert len(set(expected)) == 3


@torch.inference_mode()
def test_the_base_is_restored_bit_for_bit(made: tuple[list[Any], list[Any]], device: torch.device) -> None:
    specs, _ = made
    residents = Residents(device, 1 << 30)
    base = residents.lease(specs[0]).base
    model: Any = base.loaded.model
    ids = torch.arange(200, device=device)[None] % 256
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    answer = model(ids).logits
    for turn in range(60):
        lease = residents.lease(specs[1 + turn % 3], MERGED)
        base.apply(lease.variant)  # type: ignore[arg-type]  # merged
        assert not torch.equal(model(ids).logits, answer)
        base.apply(None)
        lease.release()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(ids).logits, answer)
