"""Answers that decode together: of one variant, and of several that lie beside the weights; in this process."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.serving import variants
from adapterhub.hub.serving.batching import Batch
from adapterhub.hub.serving.generation import Generation, Prompt
from adapterhub.hub.serving.mixture import Adapter, Mixture
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, Delta, Generate, Sampling, VariantSpec
from adapterhub.hub.serving.resident import Variant
from adapterhub.hub.serving.residents import Lease, Residents
from adapterhub.hub.serving.scheduler import Scheduler
from tests.hub.serving import models

PROMPTS = ["hello", "a much longer prompt than the others, so that rows are filled up on the left", "x", "of the sea"]


def greedy(prompt: str, count: int) -> Generate:
    return Generate(prompt=prompt, max_tokens=count, sampling=Sampling(temperature=0))


class Collecting:
    """A generation whose text is collected; after `late` steps of another it is submitted."""

    is_cancelled = False

    def __init__(self, lease: Lease, request: Generate, done: Callable[[], object]) -> None:
        self.text = ""
        self.error: Exception | None = None
        self.lease = lease
        self._generation = Generation(lease.loaded, request, Prompt(lease.loaded, request))
        self._done = done

    def rows(self) -> Sequence[Any]:
        return self._generation.rows()

    def steps(self) -> Iterator[None]:
        for events in self._generation.steps():
            self.text += "".join(event.text for event in events if isinstance(event, Delta))
            yield

    def refuse(self, error: Exception) -> None:
        self.error = error

    def close(self) -> None:
        self.lease.release()
        self._done()


def texts(leases: Sequence[Lease], requests: Sequence[Generate]) -> list[str]:
    """What the scheduler makes of requests that are there at the same time."""
    done = threading.Semaphore(0)
    scheduler = Scheduler(turn_s=0.0)
    works = [Collecting(lease, request, done.release) for lease, request in zip(leases, requests, strict=True)]
    for work in works:
        scheduler.submit(work.lease.base, work.lease.variant, work)
    scheduler.start()
    for _ in works:
        assert done.acquire(timeout=60)
    assert [work.error for work in works] == [None] * len(works)
    return [work.text for work in works]


def by_transformers(model: Any, prompt: str, count: int) -> str:
    tokenizer = models.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=count, do_sample=False, pad_token_id=models.END)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def tuned(base: Path, adapter: Path | None) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    return model if adapter is None else peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each joint pass had."""
    found: list[int] = []
    advance = Batch.advance

    def counting(self: Batch, rows: Sequence[Any]) -> None:
        found.append(len(rows))
        advance(self, rows)

    monkeypatch.setattr(Batch, "advance", counting)
    return found


@pytest.fixture
def residents() -> Residents:
    return Residents(torch.device("cpu"), 1 << 30)


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_rows_of_several_lengths_answer_as_each_alone(
    tmp_path: Path, residents: Residents, counted: list[int], make: Callable[[Path], Path]
) -> None:
    spec = models.spec("demo/base", models.source("demo/base", make(tmp_path / "base")))
    counts = [30, 5, 70, 17]  # some leave while others go on, one beyond the room that the cache begins with
    found = texts(
        [residents.lease(spec) for _ in PROMPTS], [greedy(*pair) for pair in zip(PROMPTS, counts, strict=True)]
    )
    alone = tuned(tmp_path / "base", None)
    assert found == [by_transformers(alone, *pair) for pair in zip(PROMPTS, counts, strict=True)]
    assert max(counted) == len(PROMPTS)


def test_several_answers_of_one_request_share_passes(tmp_path: Path, residents: Residents, counted: list[int]) -> None:
    spec = models.spec("demo/base", models.source("demo/base", models.llama(tmp_path / "base")))
    request = Generate(prompt="hello", max_tokens=8, n=3, sampling=Sampling(temperature=0))
    (found,) = texts([residents.lease(spec)], [request])
    alone = by_transformers(tuned(tmp_path / "base", None), "hello", 8)
    assert len(found) == 3 * len(alone)
    assert max(counted) == 3


@pytest.fixture
def four(tmp_path: Path) -> tuple[list[VariantSpec], list[Any]]:
    """The base, three LoRAs on different layers of it, and what peft makes of each."""
    base = models.llama(tmp_path / "base")
    targets = (("q_proj", "v_proj"), ("o_proj", "down_proj"), ("q_proj", "gate_proj"))
    for number, names in enumerate(targets):
        models.lora(base, tmp_path / f"l{number}", seed=number + 1, targets=names)
    source = models.source("demo/base", base)
    specs = [models.spec("demo/base", source)]
    specs += [
        models.spec(f"demo/base + demo/l{n}", source, models.source(f"demo/l{n}", tmp_path / f"l{n}", "lora"))
        for n in range(3)
    ]
    return specs, [tuned(base, None), *(tuned(base, tmp_path / f"l{n}") for n in range(3))]


def test_variants_beside_the_weights_share_passes_and_answer_as_merged(
    four: tuple[list[VariantSpec], list[Any]], residents: Residents, counted: list[int]
) -> None:
    specs, merged = four
    leases = [residents.lease(spec, RUN_TIME) for spec in specs[1:]]
    assert all(isinstance(lease.variant, Adapter) for lease in leases)
    found = texts(leases, [greedy(prompt, 20) for prompt in PROMPTS[:3]])
    expected = [by_transformers(model, prompt, 20) for model, prompt in zip(merged[1:], PROMPTS[:3], strict=True)]
    assert found == expected
    assert len(set(found)) == 3
    assert max(counted) == 3
    # and the base is itself again
    assert texts([residents.lease(specs[0])], [greedy("hello", 20)]) == [by_transformers(merged[0], "hello", 20)]
    assert not any(module._forward_hooks for module in leases[0].base.loaded.model.modules())


def test_the_test_above_notices_rows_that_are_exchanged(
    four: tuple[list[VariantSpec], list[Any]], residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = Mixture.use
    monkeypatch.setattr(Mixture, "use", lambda self, rows: use(self, rows[1:] + rows[:1]))
    specs, merged = four
    leases = [residents.lease(spec, RUN_TIME) for spec in specs[1:]]
    found = texts(leases, [greedy(prompt, 20) for prompt in PROMPTS[:3]])
    expected = [by_transformers(model, prompt, 20) for model, prompt in zip(merged[1:], PROMPTS[:3], strict=True)]
    assert sum(a != b for a, b in zip(found, expected, strict=True)) >= 2


@torch.no_grad()
def test_logits_beside_the_weights_are_the_merged_ones_to_rounding(
    four: tuple[list[VariantSpec], list[Any]], residents: Residents
) -> None:
    specs, merged = four
    lease = residents.lease(specs[1], RUN_TIME)
    model: Any = lease.base.loaded.model
    ids = torch.tensor([list(range(40))])
    lease.base.apply(lease.base.mixture)
    lease.loaded.before_pass()
    found = model(ids).logits
    lease.base.apply(None)
    expected = merged[1](ids).logits
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert float((model(ids).logits - expected).abs().max()) > 1e-2


def test_alone_a_variant_is_merged_once_it_has_paid_for_it(
    four: tuple[list[VariantSpec], list[Any]], residents: Residents
) -> None:
    spec = four[0][1]
    first = residents.lease(spec, None)
    assert isinstance(first.variant, Adapter)
    first.variant.paid_s = 1e-9
    texts([first], [greedy("hello", 4)])
    assert first.variant.paid_s > 1e-9
    first.variant.paid_s = 10.0
    second = residents.lease(spec, None)
    assert isinstance(second.variant, Variant)
    third = residents.lease(spec, None)
    assert third.variant is second.variant
    assert {first.execution_id, second.execution_id} == {third.execution_id, first.execution_id}
    second.release()
    third.release()


def test_with_others_a_variant_stays_beside_the_weights(
    four: tuple[list[VariantSpec], list[Any]], residents: Residents
) -> None:
    specs = four[0]
    hot = residents.lease(specs[1], MERGED)
    other = residents.lease(specs[2], None)
    again = residents.lease(specs[1], None)
    assert isinstance(hot.variant, Variant)
    assert isinstance(other.variant, Adapter)
    assert isinstance(again.variant, Adapter)
    for lease in (other, again):
        lease.release()
    assert residents.lease(specs[1], None).variant is hot.variant


def test_what_is_no_product_of_low_rank_is_merged_and_refused_beside(tmp_path: Path, residents: Residents) -> None:
    base = models.llama(tmp_path / "base")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    made.save_pretrained(str(tmp_path / "dora"))
    sources = models.source("demo/base", base), models.source("demo/dora", tmp_path / "dora", "lora")
    spec = models.spec("demo/base + demo/dora", *sources)
    with pytest.raises(InvalidRequest, match="cannot run beside the weights"):
        residents.lease(spec, RUN_TIME)
    assert isinstance(residents.lease(spec, None).variant, Variant)


def test_a_pass_that_fails_is_told_to_everybody_in_it(
    tmp_path: Path, residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = models.spec("demo/base", models.source("demo/base", models.llama(tmp_path / "base")))

    def failing(self: Batch, rows: Sequence[Any]) -> None:
        raise torch.OutOfMemoryError("no room")

    done = threading.Semaphore(0)
    scheduler = Scheduler()
    works = [Collecting(residents.lease(spec), greedy(prompt, 5), done.release) for prompt in PROMPTS[:2]]
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "advance", failing)
        for work in works:
            scheduler.submit(work.lease.base, None, work)
        scheduler.start()
        for _ in works:
            assert done.acquire(timeout=60)
    assert [type(work.error) for work in works] == [torch.OutOfMemoryError] * 2
    after = Collecting(residents.lease(spec), greedy("hello", 5), done.release)
    scheduler.submit(after.lease.base, None, after)
    assert done.acquire(timeout=60)
    assert after.text == by_transformers(tuned(tmp_path / "base", None), "hello", 5)


def test_a_variant_that_is_refused_is_planned_once(
    tmp_path: Path, residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = models.llama(tmp_path / "base")
    models.lora(models.llama(tmp_path / "wide", width=64), tmp_path / "foreign", seed=1)
    sources = models.source("demo/base", base), models.source("demo/foreign", tmp_path / "foreign", "lora")
    spec = models.spec("demo/base + demo/foreign", *sources)
    planned, asked = variants.planned, []

    def counting(*given: Any) -> Any:
        asked.append(given)
        return planned(*given)

    monkeypatch.setattr(variants, "planned", counting)
    for _ in range(3):
        with pytest.raises(UnfitPatch):
            residents.lease(spec, None)
    assert len(asked) == 1
