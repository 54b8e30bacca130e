"""Models that the engine composes while they decode, against loops over transformers' models and numpy's formulas."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest, TooLarge
from adapterhub.hub.serving import compositions
from adapterhub.hub.serving.client import EngineClient
from adapterhub.hub.serving.compositions import Troupe
from adapterhub.hub.serving.protocol import (
    MERGED,
    Composition,
    Delta,
    Finished,
    Generate,
    Sampling,
    Source,
    Started,
    Task,
    TokenLogprob,
    VariantSpec,
)
from adapterhub.hub.serving.residents import Residents
from adapterhub.hub.settings import Settings
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.hub.serving.test_engine import GREEDY, expected_text, text_of
from tests.merging.decoding.formulas import FORMULAS, Array

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Cast:
    """The models of the tests: how they are served, and as transformers has them."""

    specs: dict[str, VariantSpec]
    live: dict[str, Callable[[], Any]]

    def composed(
        self, operator: str, members: Sequence[str], weights: Sequence[float] = (1.0,), **parameters: Any
    ) -> VariantSpec:
        """A composition of some of them."""
        found = tuple(self.specs[one] for one in members)
        told = Composition(operator, parameters, tuple(weights), found)
        text = f"{operator}({', '.join(members)}, {list(weights)}, {parameters})"
        return VariantSpec(f"sha256:{text}", text, found[0].sources, told)

    def distribution(
        self, ids: Sequence[int], operator: str, members: Sequence[str], weights: Sequence[float] = (1.0,), **told: Any
    ) -> Array:
        """What comes next by the paper's formula, every member reading the whole text again."""
        rows = []
        with torch.no_grad():
            for one in members:
                rows.append(self.live[one]()(input_ids=torch.tensor([list(ids)])).logits[0, -1].double().numpy())
        width = min(map(len, rows))
        return FORMULAS[operator](np.stack([row[:width] for row in rows]), weights, **told)

    def greedy(self, operator: str, members: Sequence[str], *given: Any, count: int = 12, **told: Any) -> str:
        """The likeliest text, token by token."""
        ids = prompt_ids()
        start = len(ids)
        while len(ids) < start + count:
            following = int(self.distribution(ids, operator, members, *given, **told).argmax())
            if following == models.END:
                break
            ids.append(following)
        return str(models.tokenizer().decode(ids[start:], skip_special_tokens=True))


def prompt_ids(prompt: str = "hello") -> list[int]:
    return list(models.tokenizer()(prompt)["input_ids"])


@pytest.fixture(scope="module")
def cast(folder: Path, base: Source, one: Source, two: Source, tmp_path_factory: pytest.TempPathFactory) -> Cast:
    """A small base with two LoRAs, a wider model, and one that gives logits of more tokens than the tokenizer has."""
    root = tmp_path_factory.mktemp("cast")
    models.llama(root / "large", seed=7, width=64)
    padded = transformers.LlamaConfig.from_pretrained(models.llama(root / "padded", seed=8))
    padded.vocab_size = 320
    torch.manual_seed(8)
    transformers.LlamaForCausalLM(padded).save_pretrained(root / "padded")
    large, wide = models.source("demo/large", root / "large"), models.source("demo/padded", root / "padded")
    load: Callable[[Path], Any] = transformers.AutoModelForCausalLM.from_pretrained
    plain = {"small": load(folder / "llama"), "large": load(root / "large"), "padded": load(root / "padded")}
    tuned = {
        name: peft.PeftModel.from_pretrained(load(folder / "llama"), str(folder / name)).merge_and_unload()
        for name in ("one", "two")
    }
    specs = {
        "small": models.spec("demo/base", base),
        "one": models.spec("demo/base + demo/one", base, one),
        "two": models.spec("demo/base + demo/two", base, two),
        "large": models.spec("demo/large", large),
        "padded": models.spec("demo/padded", wide),
    }
    return Cast(specs, {name: lambda model=model: model for name, model in (plain | tuned).items()})  # type: ignore[misc]


CASES: list[tuple[str, list[str], list[float], dict[str, Any]]] = [
    ("proxy", ["large", "small", "one"], [1.0], {}),
    ("proxy", ["large", "small", "one", "two"], [0.7, -0.4], {"alpha": 1.5}),
    ("eft", ["large", "small", "two"], [1.0], {"beta": 0.6}),
    ("fusion", ["large", "small", "one"], [1.0], {}),
    ("ensemble", ["large", "one", "two"], [0.5, 0.3, 0.2], {}),
    ("ensemble", ["one", "large", "one"], [1.0, 1.0, 2.0], {"space": "probs"}),
    ("ensemble", ["large", "padded"], [1.0, 1.0], {"space": "logprobs"}),
    ("contrast", ["large", "small"], [1.0], {}),
    ("contrast", ["padded", "one"], [1.0], {"alpha": 0.3, "beta": 0.5, "temperature": 2.0}),
]


@pytest.mark.parametrize(("operator", "members", "weights", "told"), CASES)
def test_the_likeliest_text_is_that_of_a_loop_over_transformers_models(
    operator: str, members: list[str], weights: list[float], told: dict[str, Any], engine: EngineOnALoop, cast: Cast
) -> None:
    spec = cast.composed(operator, members, weights, **told)
    expected = cast.greedy(operator, members, weights, **told)
    assert engine.run(text_of(engine.client, spec)) == expected
    assert expected != cast.greedy("ensemble", members[:1])


async def events_of(engine: EngineOnALoop, spec: VariantSpec, asked: Generate) -> list[Any]:
    return [event async for event in engine.client.generate(spec, asked)]


def logprobs_of(events: Sequence[Any], index: int = 0) -> list[TokenLogprob]:
    return [one for event in events if isinstance(event, Delta) and event.index == index for one in event.logprobs]


def test_log_probabilities_are_the_composed_ones_of_prompt_and_answer(engine: EngineOnALoop, cast: Cast) -> None:
    members = ["large", "small", "one"]
    asked = replace(GREEDY, logprobs=3, echo=True, max_tokens=6)
    found = logprobs_of(engine.run(events_of(engine, cast.composed("proxy", members), asked)))
    ids = prompt_ids()
    assert [one.id for one in found[: len(ids)]] == ids
    assert found[0].logprob is None
    read = ids[:1]
    for one in found[1:]:
        expected = np.log(cast.distribution(read, "proxy", members))
        assert one.logprob == pytest.approx(expected[one.id], abs=1e-3)
        assert [value for _, value in one.top] == pytest.approx(sorted(expected)[:-4:-1], abs=1e-3)
        read.append(one.id)


def test_tokens_are_drawn_from_the_composed_distribution(engine: EngineOnALoop, cast: Cast) -> None:
    members = ["large", "small"]
    asked = Generate(prompt="hello", max_tokens=1, n=400, sampling=Sampling(seed=3), logprobs=0)
    spec = cast.composed("contrast", members, alpha=0.05)
    drawn, again = (
        [logprobs_of(events, index)[0].id for index in range(400)]
        for events in (engine.run(events_of(engine, spec, asked)) for _ in range(2))
    )
    assert drawn == again
    expected = cast.distribution(prompt_ids(), "contrast", members, alpha=0.05)
    assert {int(token) for token in drawn} <= set(np.flatnonzero(expected))
    counts = np.bincount(drawn, minlength=len(expected))
    # each count is within five standard deviations, and the rarest are together
    assert (np.abs(counts - 400 * expected) <= 5 * np.sqrt(400 * expected * (1 - expected)) + 1).all()


def test_several_answers_go_on_each_from_its_own_caches(engine: EngineOnALoop, cast: Cast) -> None:
    spec = cast.composed("proxy", ["large", "small", "one"])
    alone = replace(GREEDY, sampling=Sampling(seed=11), max_tokens=10, logprobs=0)
    together = engine.run(events_of(engine, spec, replace(alone, n=3)))
    for index in range(3):
        asked = replace(alone, sampling=Sampling(seed=11 + index))
        expected = [one.id for one in logprobs_of(engine.run(events_of(engine, spec, asked)))]
        assert [one.id for one in logprobs_of(together, index)] == expected


def test_a_schema_is_followed_even_where_nothing_of_it_is_plausible(engine: EngineOnALoop, cast: Cast) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    schema |= {"additionalProperties": False}
    asked = Generate(prompt="hello", max_tokens=60, sampling=Sampling(seed=1), json_schema=schema, logprobs=2)
    for spec in (cast.composed("contrast", ["padded", "small"], alpha=1.0), cast.composed("ensemble", ["large"])):
        events = engine.run(events_of(engine, spec, asked))
        text = "".join(event.text for event in events if isinstance(event, Delta))
        assert json.loads(text)["mood"] in ("good", "bad")
        told = [one.logprob for one in logprobs_of(events) if one.logprob is not None]
        assert all(-9999.0 <= value <= 0 for value in told)


def test_other_requests_in_between_change_nothing_and_bases_stay_what_they_were(
    engine: EngineOnALoop, cast: Cast, folder: Path
) -> None:
    asked = replace(GREEDY, max_tokens=40)
    specs = [
        cast.specs["small"],
        cast.composed("proxy", ["large", "small", "one"]),
        cast.specs["two"],
        cast.composed("ensemble", ["one", "two"], [1.0, 2.0]),
        cast.specs["large"],
        cast.specs["one"],
    ]

    async def together() -> tuple[list[str], list[str], list[str]]:
        before = [await text_of(engine.client, spec, asked) for spec in specs]
        at_once = await asyncio.gather(*(text_of(engine.client, spec, asked) for spec in specs * 3))
        after = [await text_of(engine.client, spec, asked) for spec in specs]
        return before, at_once, after

    before, at_once, after = engine.run(together())
    assert len(set(before)) == len(specs)
    assert at_once == before * 3
    assert after == before
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    assert before[0] == expected_text(model, count=40)


def test_what_differs_in_weights_alone_shares_its_members_in_memory(engine: EngineOnALoop, cast: Cast) -> None:
    members = ["large", "small", "one", "two"]

    async def asked() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        texts = [await text_of(engine.client, cast.composed("proxy", members, [1.0, 0.0]))]
        before = await engine.client.state()
        for weights in ([0.2, 0.8], [1.0, -0.5]):
            texts.append(await text_of(engine.client, cast.composed("proxy", members, weights)))
        return before, await engine.client.state(), texts

    before, after, texts = engine.run(asked())
    loaded = [(state["loads"], state["used_bytes"] - state["answers_bytes"]) for state in (before, after)]
    assert loaded[0] == loaded[1]
    assert len(set(texts)) == 3
    held = [(one["kind"], one["name"]) for one in after["resident"]]
    assert held.count(("base", cast.specs["small"].base.name)) == 1


def test_equal_members_and_no_shift_are_the_large_model(engine: EngineOnALoop, cast: Cast) -> None:
    large = engine.run(text_of(engine.client, cast.specs["large"]))
    for spec in (
        cast.composed("proxy", ["large", "one", "one"]),
        cast.composed("proxy", ["large", "small", "one"], alpha=0.0),
        cast.composed("fusion", ["large", "small", "small"]),
        cast.composed("ensemble", ["large"]),
    ):
        assert engine.run(text_of(engine.client, spec)) == large


def test_the_shortest_context_of_all_members_counts(engine: EngineOnALoop, cast: Cast, tmp_path: Path) -> None:
    config = transformers.LlamaConfig.from_pretrained(models.llama(tmp_path / "short", seed=9))
    config.max_position_embeddings = 16
    config.save_pretrained(tmp_path / "short")
    specs = dict(cast.specs, short=models.spec("demo/short", models.source("demo/short", tmp_path / "short")))
    spec = replace(cast, specs=specs).composed("ensemble", ["large", "short"], [1.0, 1.0])
    asked = Generate(prompt="hello", sampling=Sampling(temperature=0, logit_bias={models.END: -100.0}))
    events = engine.run(events_of(engine, spec, asked))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert (events[0].prompt_tokens, events[-1].completion_tokens, events[-1].reason) == (5, 11, "length")
    with pytest.raises(TooLarge, match="demo/short: the model's context is 16 tokens"):
        engine.run(text_of(engine.client, spec, replace(asked, max_tokens=12)))


def refused(engine: EngineOnALoop, spec: VariantSpec, asked: Generate = GREEDY) -> str:
    with pytest.raises(InvalidRequest) as caught:
        engine.run(text_of(engine.client, spec, asked))
    return str(caught.value)


def test_models_of_other_vocabularies_are_refused_with_the_difference(
    engine: EngineOnALoop, cast: Cast, tmp_path: Path
) -> None:
    models.llama(tmp_path / "other", seed=9)
    tokens = models.tokenizer()
    tokens.add_tokens(["<more>"])
    config = transformers.LlamaConfig.from_pretrained(tmp_path / "other")
    config.vocab_size = 259
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    tokens.save_pretrained(tmp_path / "other")
    models.llama(tmp_path / "mute", seed=9, with_tokenizer=False)
    for name in ("other", "mute"):
        cast.specs[name] = models.spec(f"demo/{name}", models.source(f"demo/{name}", tmp_path / name))
    told = refused(engine, cast.composed("ensemble", ["large", "other"], [1.0, 1.0]))
    assert "demo/large and demo/other have different vocabularies" in told
    assert "token 258 is '<more>' in demo/other and not in demo/large" in told
    assert "258 and 259 tokens" in told
    told = refused(engine, cast.composed("ensemble", ["large", "mute"], [1.0, 1.0]))
    assert "demo/mute" in told
    assert "no tokenizer files" in told


def test_what_is_no_decoder_is_refused(engine: EngineOnALoop, cast: Cast, tmp_path: Path) -> None:
    made: Any = transformers.T5Config
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = made(vocab_size=models.VOCABULARY, decoder_start_token_id=0, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "pair")
    models.tokenizer().save_pretrained(tmp_path / "pair")
    models.bert_classifier(tmp_path / "classes")
    for name in ("pair", "classes"):
        cast.specs[name] = models.spec(f"demo/{name}", models.source(f"demo/{name}", tmp_path / name))
    assert "an encoder-decoder is not composed" in refused(engine, cast.composed("ensemble", ["large", "pair"], [1, 1]))
    told = refused(engine, cast.composed("ensemble", ["large", "classes"], [1, 1]))
    assert "BertForSequenceClassification does not generate text" in told
    with pytest.raises(InvalidRequest, match=r"ensemble\(...\) composes what models say next"):
        engine.run(engine.client.task(cast.composed("ensemble", ["large"]), Task("embeddings", inputs="x")))


def test_tokens_that_not_all_members_have_are_refused(engine: EngineOnALoop, cast: Cast) -> None:
    spec = cast.composed("ensemble", ["padded", "large"], [1.0, 1.0])
    assert "not among the model's 258" in refused(engine, spec, replace(GREEDY, prompt=[5, 300]))
    biased = replace(GREEDY, sampling=Sampling(temperature=0, logit_bias={300: 5.0}))
    assert "token 300 is not among the 258 that all models of ensemble(" in refused(engine, spec, biased)


def test_a_composition_is_loaded_and_pinned_by_its_members(engine: EngineOnALoop, cast: Cast) -> None:
    spec = cast.composed("proxy", ["large", "small", "one"])
    loaded = engine.run(engine.client.load(spec))
    alone = [engine.run(engine.client.load(cast.specs[name])) for name in ("large", "small", "one")]
    resident = engine.run(engine.client.state())["resident"]
    held = {(one["kind"], one["digest"]): one["size_bytes"] for one in resident}
    # the third lies beside the weights of the second
    adapter = held["adapter", cast.specs["one"].vid]
    assert loaded["size_bytes"] == alone[0]["size_bytes"] + alone[1]["size_bytes"] + adapter
    assert adapter < alone[2]["size_bytes"]
    assert loaded["execution_id"] not in [one["execution_id"] for one in alone]


def test_a_member_may_be_patched_at_run_time(engine: EngineOnALoop, cast: Cast, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for parameter in tuned.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    tuned.save_pretrained(str(tmp_path / "prompt"))
    small = cast.specs["small"].base
    cast.specs["prompted"] = models.spec(
        "demo/base + demo/prompt", small, models.source("demo/prompt", tmp_path / "prompt", "prompt_tuning")
    )
    cast.live["prompted"] = lambda: tuned.eval()
    members = ["large", "small", "prompted"]
    expected = cast.greedy("proxy", members)
    assert expected != cast.greedy("ensemble", ["large"])
    assert engine.run(text_of(engine.client, cast.composed("proxy", members))) == expected
    assert engine.run(text_of(engine.client, cast.specs["small"])) == expected_text(cast.live["small"]())


@pytest.mark.parametrize(("how", "passes"), [(None, 1), (MERGED, 3)], ids=["beside", "merged"])
@torch.inference_mode()
def test_members_of_one_base_are_rows_of_one_pass(how: str | None, passes: int, cast: Cast) -> None:
    """Three members on the small model; passes a token, the first of which reads the prompt."""
    members, weights, count = ["large", "small", "one", "two"], [0.7, -0.4], 5
    spec = cast.composed("proxy", members, weights)
    troupe = compositions.lease(Residents(torch.device("cpu"), 1 << 30), spec, how)
    assert isinstance(troupe, Troupe)
    counted: Counter[str] = Counter()
    for name, member in zip(members[:2], troupe.members, strict=False):
        model: Any = member.loaded.model
        model.register_forward_pre_hook(lambda *given, name=name: counted.update([name]))
    _, generation = troupe.begin(Generate(prompt="hello", max_tokens=count, sampling=Sampling(temperature=0)))
    text = "".join(event.text for events in generation.steps() for event in events if isinstance(event, Delta))
    assert text == cast.greedy("proxy", members, weights, count=count)
    assert counted == {"large": count, "small": passes * count}
    base: Any = troupe.members[1].lease.base
    assert base.is_pristine
    assert not any(module._forward_hooks for module in base.loaded.model.modules())
    troupe.release()


def test_members_are_pinned_for_good_and_let_go_where_one_does_not_fit(cast: Cast, tmp_path: Path) -> None:
    fresh = EngineOnALoop(EngineClient(Settings(device="cpu", threads=1, pool_bytes=1 << 30)))

    def pins(total: int) -> dict[str, int]:
        """By name, once there are as many: a request lets go just after its last answer."""
        for _ in range(500):
            found = {one["name"]: one["pins"] for one in fresh.run(fresh.client.state())["resident"]}
            if sum(found.values()) == total:
                break
        return found

    try:
        for alpha in (1.0, 2.0):
            spec = cast.composed("proxy", ["large", "small", "one"], alpha=alpha)
            fresh.run(fresh.client.load(spec, pinned=True))
        pinned = pins(5)
        # the base by itself, by the pinned variant's lease, and by the variant that stands on it
        assert sorted(pinned.values()) == [1, 1, 3]
        models.llama(tmp_path / "mute", seed=9, with_tokenizer=False)
        specs = cast.specs | {"mute": models.spec("demo/mute", models.source("demo/mute", tmp_path / "mute"))}
        spec = replace(cast, specs=specs).composed("ensemble", ["one", "small", "mute"], [1.0] * 3)
        assert "no tokenizer files" in refused(fresh, spec)
        assert pins(5) == pinned | {"demo/mute@" + "0" * 40: 0}
    finally:
        fresh.close()
