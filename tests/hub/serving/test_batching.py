"""Answers that decode together: of one variant, and of several that lie beside the weights; in this process."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import InvalidRequest, UnfitPatch
from adapterhub.hub.serving import variants
from adapterhub.hub.serving.batching import MOST_READ, MOST_ROWS, Batch, alike
from adapterhub.hub.serving.mixture import Adapter, Mixture
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, Generate, Sampling, VariantSpec
from adapterhub.hub.serving.resident import Variant
from adapterhub.hub.serving.residents import Residents
from adapterhub.hub.serving.scheduler import Scheduler
from tests.hub.serving import models
from tests.hub.serving.passes import Collecting, by_transformers, greedy, texts

PROMPTS = ["hello", "a much longer prompt than the others, so that rows are filled up on the left", "x", "of the sea"]


def tuned(base: Path, adapter: Path | None) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    return model if adapter is None else peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


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


SIMILAR = ["of the sea", "of the mountains", "and of the air"]


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_prompts_of_several_lengths_are_read_together_as_each_alone(
    tmp_path: Path, residents: Residents, read_together: list[int], make: Callable[[Path], Path]
) -> None:
    spec = models.spec("demo/base", models.source("demo/base", make(tmp_path / "base")))
    # the second prompt of all is much longer and waits for nobody; one answer never shares a decoding pass
    prompts, counts = [SIMILAR[0], PROMPTS[1], *SIMILAR[1:]], [1, 12, 20, 5]
    found = texts(
        [residents.lease(spec) for _ in prompts], [greedy(*pair) for pair in zip(prompts, counts, strict=True)]
    )
    alone = tuned(tmp_path / "base", None)
    assert found == [by_transformers(alone, *pair) for pair in zip(prompts, counts, strict=True)]
    assert read_together == [len(SIMILAR)]


def test_a_prompt_read_together_is_continued_alone(
    tmp_path: Path, residents: Residents, read_together: list[int]
) -> None:
    spec = models.spec("demo/base", models.source("demo/base", models.llama(tmp_path / "base")))
    found = texts([residents.lease(spec) for _ in range(2)], [greedy(SIMILAR[0], 1), greedy(SIMILAR[1], 20)])
    alone = tuned(tmp_path / "base", None)
    assert found == [by_transformers(alone, SIMILAR[0], 1), by_transformers(alone, SIMILAR[1], 20)]
    assert read_together == [2]


def test_rows_decode_with_those_of_like_length_and_move_on_as_they_grow(
    tmp_path: Path, residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no row is filled up to much more than its length: 512 tokens, then the powers of two."""
    spec = models.spec("demo/base", models.source("demo/base", models.llama(tmp_path / "base", context=2048)))
    passes: list[list[int]] = []
    advance = Batch.advance

    def noting(self: Batch, rows: Sequence[Any]) -> None:
        passes.append([row.length for row in rows])
        advance(self, rows)

    monkeypatch.setattr(Batch, "advance", noting)
    prompts = ["a" * 500, "b" * 503, "c" * 40, "of the sea", "d" * 700, "e" * 900]
    counts = [30, 20, 40, 12, 25, 15]
    found = texts(
        [residents.lease(spec) for _ in prompts], [greedy(*pair) for pair in zip(prompts, counts, strict=True)]
    )
    alone = tuned(tmp_path / "base", None)
    assert found == [by_transformers(alone, *pair) for pair in zip(prompts, counts, strict=True)]
    assert all(max(lengths) < 512 or min(lengths) >= 511 for lengths in passes)
    assert any(min(lengths) < 20 < 500 < max(lengths) for lengths in passes)
    assert any(len(lengths) == 4 and min(lengths) >= 511 for lengths in passes)


def test_prompts_are_read_alone_where_the_cache_is_more_than_tokens(
    tmp_path: Path, residents: Residents, read_together: list[int]
) -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        bos_token_id=models.BEGIN,
        eos_token_id=models.END,
        initializer_range=0.3,
    )
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path / "base")
    models.tokenizer().save_pretrained(tmp_path / "base")
    spec = models.spec("demo/base", models.source("demo/base", tmp_path / "base"))
    found = texts([residents.lease(spec) for _ in SIMILAR], [greedy(prompt, 12) for prompt in SIMILAR])
    alone = tuned(tmp_path / "base", None)
    assert found == [by_transformers(alone, prompt, 12) for prompt in SIMILAR]
    assert read_together == []


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200))
def test_prompts_that_are_read_together_are_alike_and_few(lengths: list[int]) -> None:
    prompts: list[Any] = [SimpleNamespace(tokens=[0] * length) for length in lengths]
    found = [len(one.tokens) for one in alike(prompts)]
    assert found[0] == lengths[0]
    assert all(lengths[0] <= 2 * one and one <= 2 * lengths[0] for one in found)
    assert len(found) <= MOST_ROWS
    assert len(found) == 1 or len(found) * max(found) <= MOST_READ


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


@pytest.mark.parametrize("flattens", [False, True], ids=["llama", "opt"])
def test_rows_of_uneven_adapters_share_passes(
    tmp_path: Path, residents: Residents, read_together: list[int], counted: list[int], flattens: bool
) -> None:
    """Ranks, modules and numbers of rows differ; OPT lays its rows one after the other before its linear layers."""
    base = models.opt(tmp_path / "base") if flattens else models.llama(tmp_path / "base")
    targets = (("q_proj", "fc1"), ("fc1", "fc2")) if flattens else (("q_proj", "up_proj"), ("up_proj", "down_proj"))
    for number, names in enumerate(targets):
        models.lora(base, tmp_path / f"l{number}", seed=number + 1, targets=names, r=2 + 3 * number)
    source = models.source("demo/base", base)
    of = [
        models.spec(f"demo/base + demo/l{n}", source, models.source(f"demo/l{n}", tmp_path / f"l{n}", "lora"))
        for n in range(2)
    ]
    merged = [tuned(base, tmp_path / f"l{n}") for n in range(2)]
    used, prompts = [0, 1, 0, 0, 1], [*SIMILAR, "of the rivers", "of the birds"]
    counts = [20, 6, 9, 20, 20]
    found = texts(
        [residents.lease(of[number], RUN_TIME) for number in used],
        [greedy(*pair) for pair in zip(prompts, counts, strict=True)],
    )
    expected = [
        by_transformers(merged[n], prompt, count) for n, prompt, count in zip(used, prompts, counts, strict=True)
    ]
    assert found == expected
    assert read_together == [5]
    assert max(counted) == 5


def test_the_test_above_notices_rows_that_are_exchanged(
    four: tuple[list[VariantSpec], list[Any]], residents: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = Mixture.use
    monkeypatch.setattr(Mixture, "use", lambda self, rows, tokens=None: use(self, rows[1:] + rows[:1], tokens))
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
    four: tuple[list[VariantSpec], list[Any]], residents: Residents, monkeypatch: pytest.MonkeyPatch
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
    after = residents.lease(specs[1], None)
    assert after.variant is again.variant  # the other was there a moment ago
    after.release()
    residents.load(specs[1]).release()
    assert residents.lease(specs[1], None).variant is hot.variant  # on purpose
    residents._loaded.clear()
    monkeypatch.setattr("adapterhub.hub.serving.residents.COMPANY_S", 0.0)
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
