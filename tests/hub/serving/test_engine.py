"""The embedded engine as a process of its own, with models that their libraries saved."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image

from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.protocol import Delta, Finished, Generate, Sampling, Source, Started, Task, VariantSpec
from adapterhub.hub.settings import Settings
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop

GREEDY = Generate(prompt="hello", max_tokens=12, sampling=Sampling(temperature=0))


async def text_of(client: EngineClient, spec: VariantSpec, request: Generate = GREEDY) -> str:
    events = [event async for event in client.generate(spec, request)]
    return "".join(event.text for event in events if isinstance(event, Delta))


def expected_text(model: Any, prompt: str = "hello", count: int = 12) -> str:
    """What the library itself generates greedily."""
    tokenizer = models.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=count, do_sample=False, pad_token_id=models.END)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_base_answers_as_transformers_generates(engine: EngineOnALoop, base: Source, folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    assert engine.run(text_of(engine.client, models.spec("demo/base", base))) == expected_text(model)


def test_a_variant_answers_as_peft_merges(engine: EngineOnALoop, base: Source, one: Source, folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    tuned = peft.PeftModel.from_pretrained(model, str(folder / "one")).merge_and_unload()
    found = engine.run(text_of(engine.client, models.spec("demo/base + demo/one", base, one)))
    assert found == expected_text(tuned)


def test_gpt2_is_served_though_its_files_use_other_names(engine: EngineOnALoop, tmp_path: Path) -> None:
    models.gpt2(tmp_path / "gpt2")
    models.lora(tmp_path / "gpt2", tmp_path / "lora", seed=3, targets=["c_attn"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2")
    sources = models.source("demo/gpt2", tmp_path / "gpt2"), models.source("demo/lora", tmp_path / "lora", "lora")
    assert engine.run(text_of(engine.client, models.spec("demo/gpt2", *sources))) == expected_text(model)
    tuned = peft.PeftModel.from_pretrained(model, str(tmp_path / "lora")).merge_and_unload()
    found = engine.run(text_of(engine.client, models.spec("demo/gpt2 + demo/lora", *sources)))
    assert found == expected_text(tuned)


def test_variants_asked_at_once_do_not_mix_and_each_is_merged_once(
    engine: EngineOnALoop, base: Source, one: Source, two: Source
) -> None:
    expressions = ["demo/base", "demo/base + 0.9*demo/one", "demo/base + 0.9*demo/two"]
    specs = [models.spec(text, base, one, two) for text in expressions]
    asked = replace(GREEDY, max_tokens=60)

    async def together() -> tuple[list[str], list[str], int]:
        loads = (await engine.client.state())["loads"]
        at_once = await asyncio.gather(*(text_of(engine.client, spec, asked) for spec in specs * 3))
        alone = [await text_of(engine.client, spec, asked) for spec in specs]
        return at_once, alone, (await engine.client.state())["loads"] - loads

    at_once, alone, loads = engine.run(together())
    assert len(set(alone)) == 3
    assert at_once == alone * 3
    assert loads <= 3


def test_a_variant_occupies_only_what_its_patch_touches(engine: EngineOnALoop, base: Source, one: Source) -> None:
    loaded = engine.run(engine.client.load(models.spec("demo/base + 0.8*demo/one", base, one)))
    q_proj, v_proj = 32 * 32, 16 * 32
    assert loaded["size_bytes"] == 2 * (q_proj + v_proj) * 4


def test_answers_come_in_pieces_with_usage_and_reason(engine: EngineOnALoop, base: Source) -> None:
    spec = models.spec("demo/base", base)
    asked = replace(GREEDY, n=2, logprobs=3, echo=True, sampling=Sampling(seed=5))

    async def events() -> list[Any]:
        return [event async for event in engine.client.generate(spec, asked)]

    found = engine.run(events())
    assert found[1:] == engine.run(events())[1:], "a seed decides"
    assert isinstance(found[0], Started)
    assert found[0].prompt_tokens == 5
    assert {event.index for event in found if isinstance(event, Finished)} == {0, 1}
    first = [event for event in found if isinstance(event, Delta) and event.index == 0]
    assert first[0].text == "hello"
    assert first[0].logprobs[0].logprob is None
    assert len(first[0].logprobs) == 5
    assert all(len(piece.logprobs) == 1 and len(piece.logprobs[0].top) == 3 for piece in first[1:] if piece.logprobs)


def test_prompt_logprobs_are_those_of_a_forward_pass(engine: EngineOnALoop, base: Source, folder: Path) -> None:
    asked = Generate(prompt="hello", max_tokens=0, echo=True, logprobs=0)

    async def told() -> list[float]:
        events = [event async for event in engine.client.generate(models.spec("demo/base", base), asked)]
        echoed = next(event for event in events if isinstance(event, Delta))
        return [one.logprob for one in echoed.logprobs[1:] if one.logprob is not None]

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    ids = models.tokenizer()("hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    expected = logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(engine.run(told()), expected.numpy(), rtol=1e-4)


def test_a_stop_text_ends_an_answer_before_it(engine: EngineOnALoop, base: Source) -> None:
    spec = models.spec("demo/base", base)
    whole = engine.run(text_of(engine.client, spec, replace(GREEDY, max_tokens=40)))
    stop = whole[3:5]
    cut = engine.run(text_of(engine.client, spec, replace(GREEDY, max_tokens=40, stop=(stop,))))
    assert cut == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (Generate(prompt="x" * 300), TooLarge, "context is 256"),
        (Generate(prompt="x", max_tokens=256), TooLarge, "context is 256"),
        (Generate(prompt=[999]), InvalidRequest, "258"),
        (Generate(prompt=[]), InvalidRequest, "no tokens"),
    ],
)
def test_a_prompt_the_model_cannot_take_is_refused(
    engine: EngineOnALoop, base: Source, asked: Generate, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        engine.run(text_of(engine.client, models.spec("demo/base", base), asked))


def test_a_patch_of_another_shape_is_refused_and_the_base_goes_on(
    engine: EngineOnALoop, base: Source, tmp_path: Path
) -> None:
    models.lora(models.gpt2(tmp_path / "gpt2"), tmp_path / "lora", seed=1, targets=["c_attn"])
    wrong = models.spec("demo/base + demo/lora", base, models.source("demo/lora", tmp_path / "lora", "lora"))
    with pytest.raises(UnfitPatch, match="no such parameter"):
        engine.run(text_of(engine.client, wrong))
    assert engine.run(text_of(engine.client, models.spec("demo/base", base)))


def test_a_model_without_a_tokenizer_says_so(engine: EngineOnALoop, tmp_path: Path) -> None:
    bare = models.source("demo/bare", models.llama(tmp_path / "bare", with_tokenizer=False))
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json"):
        engine.run(text_of(engine.client, models.spec("demo/bare", bare)))


def test_code_of_a_repository_is_never_imported(engine: EngineOnALoop, tmp_path: Path) -> None:
    models.llama(tmp_path / "evil")
    config = tmp_path / "evil" / "config.json"
    auto_map = '{"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},'
    config.write_text(config.read_text().replace("{", auto_map, 1))
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    spec = models.spec("demo/evil", models.source("demo/evil", tmp_path / "evil"))
    assert engine.run(text_of(engine.client, spec))
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_missing_are_not_made_up(engine: EngineOnALoop, tmp_path: Path) -> None:
    models.llama(tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(InvalidRequest, match=r"lack model\.layers\.2"):
        engine.run(text_of(engine.client, models.spec("demo/short", models.source("demo/short", tmp_path / "short"))))


def test_texts_and_images_are_classified_as_transformers_does(engine: EngineOnALoop, tmp_path: Path) -> None:
    bert = models.spec("demo/bert", models.source("demo/bert", models.bert_classifier(tmp_path / "bert")))
    answer = engine.run(engine.client.task(bert, Task("text-classification", "fine")))
    library = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert")
    with torch.no_grad():
        scores = library(**models.tokenizer()("fine", return_tensors="pt")).logits[0].softmax(-1)
    assert [one["label"] for one in answer.output[0]] == [
        library.config.id2label[number] for number in scores.argsort(descending=True).tolist()
    ]
    assert answer.output[0][0]["score"] == pytest.approx(float(scores.max()), rel=1e-4)

    vit = models.spec("demo/vit", models.source("demo/vit", models.vit_classifier(tmp_path / "vit")))
    png = BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(png, "PNG")
    task = Task("image-classification", media=png.getvalue(), parameters={"top_k": 3})
    classes = engine.run(engine.client.task(vit, task)).output
    assert [sorted(one) for one in classes] == [["label", "score"]] * 3
    with pytest.raises(InvalidRequest, match="not an image"):
        engine.run(engine.client.task(vit, replace(task, media=b"no image")))


def test_a_model_without_a_sentence_head_gives_the_vectors_of_its_tokens(
    engine: EngineOnALoop, base: Source, folder: Path
) -> None:
    answer = engine.run(engine.client.task(models.spec("demo/base", base), Task("feature-extraction", "abc")))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    with torch.no_grad():
        hidden = model.model(models.tokenizer()("abc", return_tensors="pt")["input_ids"]).last_hidden_state
    np.testing.assert_allclose(np.array(answer.output), hidden.numpy(), rtol=1e-3, atol=1e-4)


def test_leaving_a_stream_cancels_it(engine: EngineOnALoop, base: Source) -> None:
    async def leave() -> None:
        async with aclosing(engine.client.generate(models.spec("demo/base", base), Generate(prompt="a"))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
        async for in_flight in polled(engine.client):
            if in_flight == 0:
                return

    engine.run(asyncio.wait_for(leave(), 20))


async def polled(client: EngineClient) -> AsyncIterator[int]:
    while True:
        yield (await client.state())["in_flight"]


def test_a_killed_engine_fails_what_is_in_flight_and_the_next_request_works(base: Source) -> None:
    async def life() -> None:
        client = EngineClient(Settings(device="cpu", threads=1))
        spec = models.spec("demo/base", base)
        try:
            events = client.generate(spec, Generate(prompt="a", max_tokens=200))
            assert isinstance(await anext(events), Started)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineUnavailable, match="stopped"):
                [event async for event in events]
            assert await text_of(client, spec)
        finally:
            await client.stop()
        assert client.pid is None

    asyncio.run(life())
