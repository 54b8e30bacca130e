"""Patches that work at run time, served: each answers as its oracle, and the base is itself again afterwards."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving.protocol import Delta, Generate, Sampling, Source, Started, Task, VariantSpec
from adapterhub.merging import patches
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.native_runtime import write_runtime
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.hub.serving.test_engine import expected_text, text_of
from tests.merging.exactness.compare import trained
from tests.merging.runtime.cases import CASES, Case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
]

ASKED = Generate(prompt="hello", max_tokens=12, sampling=Sampling(temperature=0))

READ_AGAIN = ("prompt_tuning", "p_tuning", "prefix_tuning", "shadow")
"""Kinds whose caches peft's generate loses where transformers calls them `cache`: peft's forward pass is the oracle."""


@dataclass(frozen=True)
class Served:
    """A patch on a base. text: what the patched model, made by other means, says after a prompt."""

    base: Source
    patch: Source
    text: Callable[..., str]

    def spec(self, weight: str = "") -> VariantSpec:
        """base + the patch, with a weight such as "2*"."""
        return models.spec(f"{self.base.reference} + {weight}{self.patch.reference}", self.base, self.patch)


def continued(oracle: Callable[..., Any], prompt: str = "hello", count: int = 12) -> str:
    """What a model says is the likeliest text, one token after another, each with the whole text read again."""
    tokenizer = models.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(count):
            following = oracle(input_ids=ids).logits[:, -1:].argmax(-1)
            if following.item() == models.END:
                break
            ids = torch.cat([ids, following], 1)
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def patch_of(name: str, folder: Path) -> Source:
    """The source of the patch in a folder, of whatever kind it is."""
    (facts,) = [one for one in patches.inspect(LocalFolder(folder)) if one.path == ""]
    assert facts.problems == ()
    return models.source(f"demo/{name}", folder, facts.kind)


def by_peft(base: Path, folder: Path, config: Any, std: float = 0.5) -> Served:
    """A patch that peft saves, and peft's own model."""
    auto: Any = transformers.AutoModelForCausalLM
    trained(auto.from_pretrained(base), config, folder, std=std)
    oracle: Any = peft.PeftModel.from_pretrained(auto.from_pretrained(base), str(folder)).eval()
    served = models.source(f"demo/{base.name}", base), patch_of(folder.name, folder)
    return Served(*served, partial(continued if served[1].kind in READ_AGAIN else expected_text, oracle))


def steered(base: Path, folder: Path, block: str, weight: float = 1.0, seed: int = 1) -> Served:
    """A vector added to what a block gives; the oracle adds it by a hook of its own."""
    vector = np.random.default_rng(seed).normal(size=32).astype(np.float32)
    write_runtime(folder, "steering", modules={block: {"vector": vector}}, options={"strength": 2.0})
    return _edited(base, folder, block, lambda h: h + weight * 2.0 * torch.from_numpy(vector))


def reft(base: Path, folder: Path, block: str) -> Served:
    """LoReFT at every position; the oracle is the paper's equation 2."""
    rng = np.random.default_rng(2)
    R, W, b = (rng.normal(size=size).astype(np.float32) for size in ((2, 32), (2, 32), (2,)))
    write_runtime(folder, "reft", modules={block: {"R": R, "W": W, "b": b}}, options={"positions": "all"})
    R_, W_, b_ = map(torch.from_numpy, (R, W, b))
    return _edited(base, folder, block, lambda h: h + (h @ W_.T + b_ - h @ R_.T) @ R_)


def bottleneck(base: Path, folder: Path, block: str) -> Served:
    """h + up(relu(down(h))); the oracle is that formula."""
    rng = np.random.default_rng(3)
    down, up = (rng.normal(size=size).astype(np.float32) * 0.5 for size in ((4, 32), (32, 4)))
    write_runtime(folder, "bottleneck", modules={block: {"down.weight": down, "up.weight": up}})
    down_, up_ = map(torch.from_numpy, (down, up))
    return _edited(base, folder, block, lambda h: h + torch.relu(h @ down_.T) @ up_.T)


def lofit(base: Path, folder: Path, projection: str) -> Served:
    """z + A ⊙ z + v on heads, before the output projection; the oracle is that formula."""
    rng = np.random.default_rng(4)
    A, v = (rng.normal(size=(4, 8)).astype(np.float32) for _ in range(2))
    write_runtime(folder, "lofit", modules={projection: {"A": A, "v": v}})
    A_, v_ = (torch.from_numpy(one).flatten() for one in (A, v))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.get_submodule(projection).register_forward_pre_hook(
        lambda module, args: (args[0] + A_ * args[0] + v_, *args[1:])
    )
    return _served(base, folder, model)


def _edited(base: Path, folder: Path, block: str, formula: Callable[[torch.Tensor], torch.Tensor]) -> Served:
    def hook(module: Any, args: Any, output: Any) -> Any:
        return (formula(output[0]), *output[1:]) if isinstance(output, tuple) else formula(output)

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.get_submodule(block).register_forward_hook(hook)
    return _served(base, folder, model)


def _served(base: Path, folder: Path, model: Any) -> Served:
    source = models.source(f"demo/{base.name}", base)
    return Served(source, patch_of(folder.name, folder), partial(continued, model))


INVOCATION = models.tokenizer()("ll")["input_ids"]
LINEAR = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
BLOCK = {"llama": "model.layers.1", "gpt2": "transformer.h.1"}
OUTPUT = {"llama": "model.layers.1.self_attn.o_proj", "gpt2": "transformer.h.1.attn.c_proj"}
VIRTUAL: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}

KINDS: dict[str, Callable[[Path, Path, str], Served]] = {
    "prompt_tuning": lambda base, folder, name: by_peft(base, folder, peft.PromptTuningConfig(**VIRTUAL)),
    "p_tuning": lambda base, folder, name: by_peft(
        base, folder, peft.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=8)
    ),
    "prefix_tuning": lambda base, folder, name: by_peft(base, folder, peft.PrefixTuningConfig(**VIRTUAL), std=1.0),
    "lily": lambda base, folder, name: by_peft(
        base, folder, peft.LilyConfig(task_type="CAUSAL_LM", r=2, num_B=3, stride_A=1, target_modules=LINEAR[name])
    ),
    "adaption_prompt": lambda base, folder, name: by_peft(
        base, folder, peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2)
    ),
    "alora": lambda base, folder, name: by_peft(
        base,
        folder,
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=LINEAR[name], alora_invocation_tokens=INVOCATION),
    ),
    "shadow": lambda base, folder, name: by_peft(base, folder, peft.ShadowConfig(task_type="CAUSAL_LM", r=3)),
    "steering": lambda base, folder, name: steered(base, folder, BLOCK[name]),
    "reft": lambda base, folder, name: reft(base, folder, BLOCK[name]),
    "bottleneck": lambda base, folder, name: bottleneck(base, folder, BLOCK[name]),
    "lofit": lambda base, folder, name: lofit(base, folder, OUTPUT[name]),
}
ONLY_ON: dict[str, Sequence[str]] = {"shadow": ("llama",), "lily": ("llama",)}
EVERY = [(kind, name) for kind in KINDS for name in ONLY_ON.get(kind, ("llama", "gpt2"))]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"llama": models.llama(root / "llama"), "gpt2": models.gpt2(root / "gpt2")}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_run_time_patch_answers_as_its_oracle_and_the_base_as_before(
    engine: EngineOnALoop, bases: dict[str, Path], kind: str, name: str, tmp_path: Path
) -> None:
    served = KINDS[kind](bases[name], tmp_path / kind, name)
    assert served.patch.kind == kind
    bare = models.spec(served.base.reference, served.base)
    before = engine.run(text_of(engine.client, bare, ASKED))
    expected = served.text()
    assert engine.run(text_of(engine.client, served.spec(), ASKED)) == expected
    assert engine.run(text_of(engine.client, bare, ASKED)) == before
    assert expected != before


@pytest.mark.parametrize(
    "case",
    [one for one in CASES if one.kind in ("xlora", "arrow", "loramoe", "ept", "cpt", "cartridge") and one.generates],
    ids=str,
)
def test_the_cases_of_the_run_time_kinds_are_served_alike(engine: EngineOnALoop, case: Case, tmp_path: Path) -> None:
    if case.architecture not in ("llama", "gpt2"):
        pytest.skip("two architectures are enough here; the others are measured where the kinds are")
    made = case.make(tmp_path, "float32")
    made.model.save_pretrained(tmp_path / "base")
    models.tokenizer().save_pretrained(tmp_path / "base")
    (facts,) = [one for one in patches.inspect(LocalFolder(made.folder)) if one.path == made.path]
    base, patch = (f"demo/{what}-{case}" for what in ("base", "patch"))
    sources = models.source(base, tmp_path / "base"), models.source(patch, made.folder, facts.kind)
    spec = models.spec(f"{base} + {patch}", sources[0], replace(sources[1], path=made.path))
    asked = replace(ASKED, prompt=[3, 4, 5, 6], max_tokens=6)
    ids = torch.tensor([asked.prompt])
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, made.oracle(input_ids=ids)[:, -1:].argmax(-1)], 1)
    assert engine.run(text_of(engine.client, spec, asked)) == models.tokenizer().decode(ids[0, 4:])


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_an_encoder_with_a_decoder_is_patched_too(engine: EngineOnALoop, kind: str, tmp_path: Path) -> None:
    made = next(one for one in CASES if (one.kind, one.architecture) == (kind, "t5")).make(tmp_path, "float32")
    made.model.save_pretrained(tmp_path / "base")
    models.tokenizer().save_pretrained(tmp_path / "base")
    sources = models.source(f"demo/t5-{kind}", tmp_path / "base"), patch_of(f"on-t5-{kind}", made.folder)
    spec = models.spec(f"{sources[0].reference} + {sources[1].reference}", *sources)
    given = torch.tensor([[3, 4, 5, 6]])

    def chosen(oracle: Callable[..., torch.Tensor]) -> tuple[list[int], list[float]]:
        """Tokens and their log probabilities, each with the decoder's text read again."""
        written, told = torch.tensor([[made.model.config.decoder_start_token_id]]), []
        with torch.no_grad():
            for _ in range(6):
                logprobs = oracle(input_ids=given, decoder_input_ids=written)[:, -1].log_softmax(-1)
                told.append(float(logprobs.max()))
                written = torch.cat([written, logprobs.argmax(-1, keepdim=True)], 1)
        return written[0, 1:].tolist(), told

    tokens, expected = chosen(made.oracle)
    events = engine.run(_events(engine, spec, replace(ASKED, prompt=given[0].tolist(), max_tokens=6, logprobs=0)))
    pieces = [event for event in events if isinstance(event, Delta)]
    assert "".join(one.text for one in pieces) == models.tokenizer().decode(tokens, skip_special_tokens=True)
    found = [one.logprob or 0.0 for piece in pieces for one in piece.logprobs]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, chosen(lambda **inputs: made.model(**inputs).logits)[1], rtol=1e-3)


@pytest.mark.parametrize("kind", ["prefix_tuning", "alora", "prompt_tuning", "lily", "shadow"])
def test_texts_asked_at_once_do_not_see_each_other(
    engine: EngineOnALoop, bases: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    served = KINDS[kind](bases["llama"], tmp_path / kind, "llama")
    prompts = ["hello", "he", "all of it", "xyz llll"]

    async def together() -> list[str]:
        specs = [served.spec(), models.spec(served.base.reference, served.base)]
        return await asyncio.gather(
            *(text_of(engine.client, spec, replace(ASKED, prompt=one)) for one in prompts for spec in specs)
        )

    found = engine.run(together())
    assert found[::2] == [served.text(one) for one in prompts]


@pytest.mark.parametrize("kind", ["prefix_tuning", "alora", "shadow"])
def test_several_answers_to_one_prompt_go_on_from_one_cache(
    engine: EngineOnALoop, bases: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    served = KINDS[kind](bases["llama"], tmp_path / kind, "llama")
    text = engine.run(text_of(engine.client, served.spec(), replace(ASKED, n=2)))
    expected = served.text()
    assert sorted(text) == sorted(expected * 2)


def test_a_run_time_patch_lies_on_what_is_merged(
    engine: EngineOnALoop, bases: dict[str, Path], one: Source, tmp_path: Path
) -> None:
    served = by_peft(bases["llama"], tmp_path / "prompt", peft.PromptTuningConfig(**VIRTUAL))
    spec = models.spec("demo/llama + demo/one + demo/prompt", served.base, one, served.patch)
    merged: Any = transformers.AutoModelForCausalLM.from_pretrained(bases["llama"])
    merged = peft.PeftModel.from_pretrained(merged, str(Path(one.folder.path("adapter_config.json")).parent))
    oracle = peft.PeftModel.from_pretrained(merged.merge_and_unload(), str(tmp_path / "prompt")).eval()
    assert engine.run(text_of(engine.client, spec, ASKED)) == continued(oracle)
    alone = engine.run(text_of(engine.client, models.spec("demo/llama + demo/one", served.base, one), ASKED))
    assert alone != continued(oracle)


def test_weights_of_steering_vectors_scale_and_add(
    engine: EngineOnALoop, bases: dict[str, Path], tmp_path: Path
) -> None:
    block = BLOCK["llama"]
    one, two = (steered(bases["llama"], tmp_path / f"v{seed}", block, seed=seed) for seed in (1, 2))
    spec = models.spec("demo/llama + 0.5*demo/v1 - 0.25*demo/v2", one.base, one.patch, two.patch)
    vectors = [np.random.default_rng(seed).normal(size=32).astype(np.float32) for seed in (1, 2)]
    added = torch.from_numpy(0.5 * 2 * vectors[0] - 0.25 * 2 * vectors[1])
    expected = _edited(bases["llama"], tmp_path / "v1", block, lambda h: h + added).text()
    assert engine.run(text_of(engine.client, spec, ASKED)) == expected


def test_what_order_means_is_declared_and_obeyed(engine: EngineOnALoop, bases: dict[str, Path], tmp_path: Path) -> None:
    """Two edits of one block: h + f(h), then g of that; the lowest acts first."""
    base, block = bases["llama"], BLOCK["llama"]
    lower, upper = bottleneck(base, tmp_path / "lower", block), steered(base, tmp_path / "upper", block)
    spec = "sequence(demo/llama; demo/lower, demo/upper)", "sequence(demo/llama; demo/upper, demo/lower)"
    sources = lower.base, lower.patch, upper.patch
    texts = [engine.run(text_of(engine.client, models.spec(one, *sources), ASKED)) for one in spec]
    assert texts[0] != texts[1]
    with pytest.raises(UnfitPatch, match="declare the order"):
        engine.run(text_of(engine.client, models.spec("demo/llama + demo/lower + demo/upper", *sources), ASKED))


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("demo/llama + 0.5*demo/prompt", "weight 0.5"),
        ("demo/llama + demo/prompt + demo/reft", "it counts positions"),
        ("ties(demo/llama; demo/prompt, demo/one)", "outside the method"),
        ("sequence(demo/llama; demo/prompt, demo/one)", "lora does not go on top of prompt_tuning"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name_and_the_base_goes_on(
    engine: EngineOnALoop, bases: dict[str, Path], one: Source, tmp_path: Path, expression: str, says: str
) -> None:
    prompt = by_peft(bases["llama"], tmp_path / "prompt", peft.PromptTuningConfig(**VIRTUAL))
    other = reft(bases["llama"], tmp_path / "reft", BLOCK["llama"])
    with pytest.raises(UnfitPatch, match=says):
        engine.run(text_of(engine.client, models.spec(expression, prompt.base, prompt.patch, other.patch, one), ASKED))
    assert engine.run(text_of(engine.client, models.spec("demo/llama", prompt.base), ASKED))


def test_a_patch_that_needs_the_task_of_every_call_is_refused(
    engine: EngineOnALoop, bases: dict[str, Path], tmp_path: Path
) -> None:
    config = peft.MultitaskPromptTuningConfig(**VIRTUAL, num_tasks=2, num_ranks=2)
    served = by_peft(bases["llama"], tmp_path / "tasks", config)
    with pytest.raises(InvalidRequest, match="needs task_ids"):
        engine.run(text_of(engine.client, served.spec(), ASKED))


def test_a_patch_for_another_base_is_refused_while_others_are_answered(
    engine: EngineOnALoop, bases: dict[str, Path], tmp_path: Path
) -> None:
    """It passes the plan, which sees names and shapes of weights alone; the model is what refuses it."""
    foreign = by_peft(
        models.llama(tmp_path / "wide", width=16), tmp_path / "foreign", peft.PromptTuningConfig(**VIRTUAL)
    )
    base = models.source("demo/llama", bases["llama"])
    wrong, right = models.spec("demo/llama + demo/foreign", base, foreign.patch), models.spec("demo/llama", base)

    async def together() -> tuple[Any, str]:
        refused, text = await asyncio.gather(
            text_of(engine.client, wrong, ASKED), text_of(engine.client, right, ASKED), return_exceptions=True
        )
        return refused, str(text)

    refused, text = engine.run(together())
    assert isinstance(refused, UnfitPatch)
    assert "prompt_embeddings" in str(refused)
    assert text == engine.run(text_of(engine.client, right, ASKED))


def test_virtual_tokens_take_places_of_the_context(
    engine: EngineOnALoop, bases: dict[str, Path], tmp_path: Path
) -> None:
    served = by_peft(bases["gpt2"], tmp_path / "prefix", peft.PrefixTuningConfig(**VIRTUAL))
    assert engine.run(text_of(engine.client, served.spec(), Generate(prompt="a" * 240, max_tokens=11)))
    with pytest.raises(TooLarge, match="251 tokens beside 5 virtual ones"):
        engine.run(text_of(engine.client, served.spec(), Generate(prompt="a" * 240, max_tokens=12)))


def test_the_execution_id_says_that_a_patch_worked_at_run_time(
    engine: EngineOnALoop, bases: dict[str, Path], one: Source, tmp_path: Path
) -> None:
    served = steered(bases["llama"], tmp_path / "v", BLOCK["llama"])
    merged = replace(models.spec("demo/llama + demo/one", served.base, one), vid="sha256:same")
    patched = replace(served.spec(), vid="sha256:same too")

    async def started(spec: VariantSpec) -> str:
        events = [event async for event in engine.client.generate(spec, ASKED)]
        assert isinstance(events[0], Started)
        return events[0].execution_id

    assert engine.run(started(merged)) != engine.run(started(patched))


def test_echoed_log_probabilities_are_those_of_the_text_after_the_prompt(
    engine: EngineOnALoop, bases: dict[str, Path], tmp_path: Path
) -> None:
    served = by_peft(bases["gpt2"], tmp_path / "prompt", peft.PromptTuningConfig(**VIRTUAL))
    events = engine.run(_events(engine, served.spec(), Generate(prompt="hello", max_tokens=0, echo=True, logprobs=0)))
    told = [one.logprob for one in events[1].logprobs[1:]]
    ids = models.tokenizer()("hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = served.text.args[0](input_ids=ids).logits[0, -5:].log_softmax(-1)  # type: ignore[attr-defined]
    np.testing.assert_allclose(told, logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0].numpy(), rtol=1e-4)


async def _events(engine: EngineOnALoop, spec: VariantSpec, asked: Generate) -> list[Any]:
    return [event async for event in engine.client.generate(spec, asked)]


def test_vectors_and_classes_are_those_of_the_patched_model(engine: EngineOnALoop, tmp_path: Path) -> None:
    base = models.bert_classifier(tmp_path / "bert")
    auto: Any = transformers.AutoModelForSequenceClassification
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    trained(auto.from_pretrained(base), config, tmp_path / "prompt", std=2.0)
    oracle: Any = peft.PeftModel.from_pretrained(auto.from_pretrained(base), str(tmp_path / "prompt")).eval()
    source = models.source("demo/bert", base)
    spec = models.spec("demo/bert + demo/prompt", source, patch_of("prompt", tmp_path / "prompt"))
    encoded = models.tokenizer()("fine", return_tensors="pt")
    with torch.no_grad():
        expected = oracle(**encoded, output_hidden_states=True)
    answer = engine.run(engine.client.task(spec, Task("text-classification", "fine"))).output[0]
    scores = {one["label"]: one["score"] for one in answer}
    for number, label in oracle.config.id2label.items():
        assert scores[label] == pytest.approx(float(expected.logits[0].softmax(-1)[number]), rel=1e-4)
    vectors = engine.run(engine.client.task(spec, Task("feature-extraction", "fine"))).output
    np.testing.assert_allclose(vectors, expected.hidden_states[-1][:, -4:].numpy(), rtol=1e-3, atol=1e-5)
    bare = engine.run(engine.client.task(models.spec("demo/bert", source), Task("feature-extraction", "fine"))).output
    assert not np.allclose(vectors, bare, atol=1e-3)
