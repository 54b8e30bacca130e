"""A base in memory, its variants, and the scheduler that shares it, in this process."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import UnfitPatch
from adapterhub.hub.serving import loading
from adapterhub.hub.serving.resident import Base, Variant
from adapterhub.hub.serving.scheduler import Scheduler
from adapterhub.merging.attachments import Attachment
from adapterhub.merging.errors import UnknownSite
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.native_runtime import write_runtime
from tests.hub.serving import models
from tests.merging.exactness.compare import trained
from tests.merging.runtime.test_laws import trace

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def resident(folder: Path) -> Base:
    source = models.source("demo/base", folder)
    shapes = {name: handle.shape for name, handle in loading.checkpoint(source).tensors.items()}
    return Base("sha256:base", loading.load(source, torch.device("cpu")), shapes)


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return resident(models.llama(tmp_path / "base"))


def constant(base: Base, vid: str, value: float) -> Variant:
    return base.variant(vid, {Q_PROJ: torch.full_like(base.tensors()[Q_PROJ], value)})


def digest(base: Base) -> str:
    state = base.loaded.model.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_the_base_is_itself_again_bit_for_bit_after_many_switches(base: Base) -> None:
    before = digest(base)
    variants = [constant(base, f"v{value}", value) for value in range(3)]
    for turn in range(200):
        base.apply(variants[turn % 3])
        assert float(base.loaded.model.state_dict()[Q_PROJ][0, 0]) == turn % 3
    base.apply(None)
    assert digest(base) == before


def test_a_variant_shares_every_tensor_it_does_not_touch(base: Base) -> None:
    places = {name: tensor.data_ptr() for name, tensor in base.loaded.model.state_dict().items()}
    variant = constant(base, "v", 1.0)
    base.apply(variant)
    moved = {name for name, tensor in base.loaded.model.state_dict().items() if tensor.data_ptr() != places[name]}
    assert moved == {Q_PROJ}
    assert variant.size_bytes == 32 * 32 * 4


def test_tied_weights_change_together_unless_the_head_is_named(tmp_path: Path) -> None:
    base = resident(models.llama(tmp_path / "tied", tied=True))
    state = base.loaded.model.state_dict
    embedding = "model.embed_tokens.weight"
    new = torch.ones_like(base.tensors()[embedding])
    base.apply(base.variant("both", {embedding: new}))
    assert torch.equal(state()["lm_head.weight"], new)
    base.apply(base.variant("head alone", {"lm_head.weight": new}))
    assert torch.equal(state()["lm_head.weight"], new)
    assert not torch.equal(state()[embedding], new)


def test_a_tensor_the_model_does_not_hold_is_refused(base: Base) -> None:
    with pytest.raises(UnfitPatch, match="experts"):
        base.variant("v", {"model.experts.weight": torch.zeros(2)})
    with pytest.raises(UnfitPatch, match="q_proj"):
        base.variant("v", {Q_PROJ: torch.zeros(2, 2)})


def logits(base: Base) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = base.loaded.model(input_ids=torch.arange(8).view(1, 8)).logits
    return found


def test_run_time_patches_come_and_go_with_their_variant_without_a_trace(base: Base, tmp_path: Path) -> None:
    vector = np.ones(32, np.float32)
    write_runtime(tmp_path / "v", "steering", modules={"model.layers.0": {"vector": vector}})
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config, tmp_path / "p", std=1.0)
    attached = [
        Attachment(name, kind, LocalFolder(tmp_path / name), "", 1.0)
        for name, kind in (("p", "prompt_tuning"), ("v", "steering"))
    ]
    pristine, bare = digest(base), logits(base)
    before = trace(base.loaded.model)
    new = torch.full_like(base.tensors()[Q_PROJ], 0.01)
    both, one = base.variant("both", {Q_PROJ: new}, attached), base.variant("one", {}, attached[1:])
    base.apply(both)
    first = logits(base)
    base.apply(one)
    second = logits(base)
    assert first.shape[1] == 3 + second.shape[1]
    for _ in range(20):
        base.apply(both)
        assert torch.equal(logits(base), first)
        base.apply(one)
        assert torch.equal(logits(base), second)
        base.apply(None)
        assert torch.equal(logits(base), bare)
    assert trace(base.loaded.model) == before
    assert digest(base) == pristine


def test_a_patch_that_does_not_fit_leaves_the_base_as_it_was(base: Base, tmp_path: Path) -> None:
    write_runtime(tmp_path / "v", "steering", modules={"model.layers.7": {"vector": np.ones(32, np.float32)}})
    wrong = Attachment("demo/v", "steering", LocalFolder(tmp_path / "v"), "", 1.0)
    before, state = trace(base.loaded.model), digest(base)
    new = torch.zeros_like(base.tensors()[Q_PROJ])
    with pytest.raises(UnknownSite, match=r"model\.layers\.7"):
        base.apply(base.variant("v", {Q_PROJ: new}, [wrong]))
    assert trace(base.loaded.model) == before
    assert digest(base) == state


class Watching:
    """Work that looks at the weights it is computed under, at each of its steps."""

    is_cancelled = False

    def __init__(self, base: Base, done: threading.Semaphore) -> None:
        self.seen: list[float] = []
        self._base = base
        self._done = done

    def rows(self) -> list[Any]:
        return []

    def unread(self) -> None:
        pass

    def steps(self) -> Iterator[None]:
        for _ in range(50):
            self.seen.append(float(self._base.loaded.model.get_parameter(Q_PROJ)[0, 0]))
            yield

    def refuse(self, error: Exception) -> None:
        raise AssertionError(error)

    def close(self) -> None:
        self._done.release()


def computed(base: Base, variants: list[Variant]) -> list[list[float]]:
    """What works of these variants, submitted together, saw."""
    done = threading.Semaphore(0)
    scheduler = Scheduler(turn_s=0.0)
    works = [(variant, Watching(base, done)) for variant in variants]
    for variant, work in works:
        scheduler.submit(base, variant, work)
    scheduler.start()
    for _ in works:
        assert done.acquire(timeout=30)
    return [work.seen for _, work in works]


def test_works_of_different_variants_never_see_each_others_weights(base: Base) -> None:
    variants = [constant(base, f"v{value}", value) for value in (1.0, 2.0, 3.0)]
    assert computed(base, variants) == [[1.0] * 50, [2.0] * 50, [3.0] * 50]


def test_the_test_above_notices_weights_that_are_not_switched(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [constant(base, f"v{value}", value) for value in (1.0, 2.0)]
    base.apply(variants[0])
    monkeypatch.setattr(Base, "apply", lambda self, variant: None)
    assert computed(base, variants) == [[1.0] * 50, [1.0] * 50]
