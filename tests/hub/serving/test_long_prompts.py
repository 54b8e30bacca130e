"""Prompts that are read in pieces: the same answers, and others compute in between."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers

from adapterhub.hub.serving import generation
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, Delta, Source, TokenLogprob
from adapterhub.hub.serving.residents import Residents
from adapterhub.hub.serving.scheduler import Scheduler
from tests.hub.serving import models
from tests.hub.serving.passes import Collecting, by_transformers, greedy, texts

LONG = "once upon a time there was a patch that nobody had read. " * 3


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "PIECE", 16)


@pytest.fixture
def lengths(residents: Residents, base: Source) -> Iterator[list[int]]:
    """How many tokens each pass of the base's model read."""
    found: list[int] = []

    def count(model: Any, positional: Any, given: dict[str, Any]) -> None:
        found.append(given["input_ids"].shape[1])

    model = residents.lease(models.spec("demo/base", base)).loaded.model
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    yield found
    hook.remove()


def plain(base: Source) -> Any:
    """The base as transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(base.folder.path("config.json").parent)


def test_a_prompt_in_pieces_is_continued_as_transformers_does(residents: Residents, base: Source) -> None:
    found = texts([residents.lease(models.spec("demo/base", base))], [greedy(LONG, 12)])
    assert found == [by_transformers(plain(base), LONG, 12)]


@pytest.mark.parametrize("how", [MERGED, RUN_TIME])
def test_a_patch_acts_on_all_pieces(
    residents: Residents, base: Source, one: Source, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = models.spec("demo/base + demo/one", base, one)
    in_pieces = texts([residents.lease(spec, how)], [greedy(LONG, 12)])
    monkeypatch.setattr(generation, "PIECE", 10_000)
    assert in_pieces == texts([residents.lease(spec, how)], [greedy(LONG, 12)])


def test_no_pass_reads_more_than_a_piece(residents: Residents, base: Source, lengths: list[int]) -> None:
    count = len(models.tokenizer()(LONG)["input_ids"])
    texts([residents.lease(models.spec("demo/base", base))], [greedy(LONG, 1)])
    assert lengths[:-1] == [16] * (count // 16)
    assert sum(lengths) == count


def test_log_probabilities_of_a_prompt_in_pieces_are_those_of_the_whole(residents: Residents, base: Source) -> None:
    request = replace(greedy(LONG, 1), echo=True, logprobs=2)
    told: list[TokenLogprob] = []
    with torch.inference_mode():
        _, made = residents.lease(models.spec("demo/base", base)).begin(request)
        for events in made.steps():
            told += [one for event in events if isinstance(event, Delta) for one in event.logprobs]
    ids = models.tokenizer()(LONG, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = plain(base)(input_ids=ids).logits[0].log_softmax(-1)
    count = ids.shape[1]
    assert told[0].logprob is None
    found = torch.tensor([one.logprob for one in told[1:count]])
    torch.testing.assert_close(found, expected[:-1].gather(1, ids[0, 1:, None])[:, 0], rtol=1e-4, atol=1e-4)


def test_others_answer_while_a_long_prompt_is_read(residents: Residents, base: Source, one: Source) -> None:
    ended: list[str] = []
    done = threading.Semaphore(0)

    def end(name: str) -> None:
        ended.append(name)
        done.release()

    long, short = (
        Collecting(residents.lease(spec), request, partial(end, name))
        for name, spec, request in (
            ("long", models.spec("demo/base", base), greedy(LONG, 1)),
            ("short", models.spec("demo/base + demo/one", base, one), greedy("hi", 1)),
        )
    )
    scheduler = Scheduler(turn_s=0.0)
    for work in (long, short):
        scheduler.submit(work.lease.base, work.lease.variant, work)
    scheduler.start()
    assert done.acquire(timeout=60)
    assert done.acquire(timeout=60)
    assert ended == ["short", "long"]
