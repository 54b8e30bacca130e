"""Memory of answers, counted before it is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import Overloaded, TooLarge
from adapterhub.hub.serving.pool import Pool
from adapterhub.hub.serving.protocol import Generate, Sampling
from adapterhub.hub.serving.residents import Residents
from adapterhub.hub.serving.rooms import LEAST, Room, bytes_a_token, room_of
from tests.hub.serving import models
from tests.hub.serving.passes import by_transformers, greedy, submitted, texts
from tests.merging.exactness.architectures import ARCHITECTURES

DECODERS = ("llama", "mistral", "gpt2", "gemma", "opt", "phi3", "falcon", "mixtral")


@given(st.integers(1, 1 << 20))
def test_a_row_is_at_most_twice_as_long_as_it_must_be(tokens: int) -> None:
    found = room_of(tokens)
    assert found >= tokens
    assert found == LEAST or found < 2 * tokens


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_bytes_are_those_of_a_real_cache(name: str) -> None:
    model: Any = ARCHITECTURES[name].make(dtype=torch.float32)
    ids = torch.arange(3, 10)[None]
    output = model(input_ids=ids, use_cache=True)
    cache = output["cache"] if "cache" in output else output["past_key_values"]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_a_token(model) * ids.shape[1] == held


@torch.no_grad()
def test_a_pair_keeps_what_it_reads_and_what_it_says(tmp_path: Path) -> None:
    model: Any = ARCHITECTURES["t5"].make(dtype=torch.float32)
    ids = torch.arange(3, 10)[None]
    cache = model(input_ids=ids, decoder_input_ids=ids, use_cache=True)
    cache = cache["cache"] if "cache" in cache else cache["past_key_values"]
    parts = (cache.self_attention_cache, cache.cross_attention_cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for part in parts for layer in part.layers)
    assert bytes_a_token(model) * ids.shape[1] == held


def test_a_room_asks_for_what_it_lacks_and_gives_all_back() -> None:
    pool = Pool(10_000)
    room = Room(pool, 2)
    room.need(10)
    assert pool.reserved_bytes == LEAST * 2
    room.need(LEAST)
    assert pool.reserved_bytes == LEAST * 2
    room.need(LEAST + 1, rows=2)
    assert pool.reserved_bytes == 2 * LEAST * 2 * 2
    with pytest.raises(TooLarge):
        room.need(100_000)
    assert pool.reserved_bytes == 2 * LEAST * 2 * 2
    room.free()
    assert pool.reserved_bytes == 0
    Room().need(1 << 30)  # without walls


def test_an_answer_that_finds_no_room_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    base = models.llama(tmp_path / "base")
    spec = models.spec("demo/base", models.source("demo/base", base))
    weights = Residents(torch.device("cpu"), 1 << 30).lease(spec).base.size_bytes
    a_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
    residents = Residents(torch.device("cpu"), weights + LEAST * a_token)
    first = residents.lease(spec)
    first.begin(greedy("hello", 20))
    second = residents.lease(spec)
    with pytest.raises(Overloaded, match="no room in memory for this answer"):
        second.begin(greedy("hello", 20))
    second.release()
    first.release()
    assert residents.state()["answers_bytes"] == 0
    assert texts([residents.lease(spec)], [greedy("hello", 20)]) == [
        by_transformers(transformers.AutoModelForCausalLM.from_pretrained(base), "hello", 20)
    ]
    assert residents.state()["answers_bytes"] == 0


def test_an_answer_that_outgrows_memory_ends_with_an_error_and_frees_it(tmp_path: Path) -> None:
    base = models.llama(tmp_path / "base", context=2048)
    spec = models.spec("demo/base", models.source("demo/base", base))
    weights = Residents(torch.device("cpu"), 1 << 30).lease(spec).base.size_bytes
    residents = Residents(torch.device("cpu"), weights + 2 * LEAST * 2 * 2 * 2 * 8 * 4)
    # of a length that nobody said; the end of text cannot come
    asked = Generate(prompt="x" * 20, sampling=Sampling(temperature=0, logit_bias={models.END: -100.0}))
    (work,) = submitted([residents.lease(spec)], [asked])
    assert isinstance(work.error, Overloaded | TooLarge)
    assert residents.state()["answers_bytes"] == 0
