"""Scores on held-out examples: what they are, that the base stays itself, and that a search finds the best."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from adapterhub.hub.errors import InvalidRequest, TooLarge
from adapterhub.hub.serving.heldout import HeldOut, of_lines, read
from adapterhub.hub.serving.scoring import Bench
from adapterhub.merging.folders import LocalFolder
from adapterhub.merging.plan import Plan, plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Recipe, Ref
from adapterhub.merging.tuning.knobs import space
from adapterhub.merging.tuning.search import Course, search
from tests.hub.serving import models
from tests.merging import tiny

TEXTS = ["the quick brown fox", "jumps", "over the lazy dog, twice"]


def planned(recipe: str | Recipe, **folders: Path) -> Plan:
    inputs = {
        Ref(name): Input(name, LocalFolder(folder), "", "model" if name == "base" else "lora")
        for name, folder in folders.items()
    }
    found = parse(recipe) if isinstance(recipe, str) else recipe
    return plan(found, inputs, memory_bytes=1 << 30, attaches=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def code(base: Path) -> Path:
    return models.lora(base, base.parent / "code", seed=1)


@pytest.fixture(scope="module")
def bench(base: Path) -> Bench:
    return Bench(Input("base", LocalFolder(base)))


def reference(base: Path, code: Path, weight: float) -> Any:
    """The same model by peft alone, in float32."""
    model: Any = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(code))
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling["default"] *= weight
    return model.eval()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
    return found


def tokens(text: str) -> list[int]:
    return list(models.tokenizer()(text)["input_ids"])


@torch.no_grad()
def test_losses_are_those_of_transformers_and_peft(bench: Bench, base: Path, code: Path) -> None:
    heldout = of_lines([{"text": text} for text in TEXTS], "file")
    found = bench.score(planned("base + 0.5*code", base=base, code=code), heldout)
    model, total, count = reference(base, code, 0.5), 0.0, 0
    for text in TEXTS:
        row = torch.tensor([tokens(text)])
        total += float(model(input_ids=row, labels=row).loss) * (row.shape[1] - 1)
        count += row.shape[1] - 1
    assert found == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
def test_only_the_completions_tokens_count(bench: Bench, base: Path, code: Path) -> None:
    lines = [{"prompt": "two and two", "completion": " is four"}, {"prompt": "a", "completion": "b"}]
    found = bench.score(planned("base + 0.5*code", base=base, code=code), of_lines(lines, "file"))
    model, total, count = reference(base, code, 0.5), 0.0, 0
    for line in lines:
        before, after = tokens(line["prompt"]), tokens(line["completion"])
        row = torch.tensor([before + after])
        labels = torch.tensor([[-100] * len(before) + after])
        total += float(model(input_ids=row, labels=labels).loss) * len(after)
        count += len(after)
    assert found == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
def test_accuracy_counts_the_likeliest_choices(bench: Bench, base: Path, code: Path) -> None:
    words = ["red", "green", "blue", "a longer one"]
    lines: list[dict[str, Any]] = [{"prompt": f"colour {n}: ", "choices": words, "answer": n % 4} for n in range(11)]
    lines += [{"prompt": "by text ", "choices": words, "answer": "green"}]
    found = bench.score(planned("base + code", base=base, code=code), of_lines(lines, "file"))
    model, right = reference(base, code, 1.0), 0
    for line in lines:
        scores = []
        for word in words:
            before, after = tokens(str(line["prompt"])), tokens(word)
            logits = model(input_ids=torch.tensor([before + after])).logits[0].double()
            scores.append(sum(float(logits[len(before) - 1 + n].log_softmax(-1)[one]) for n, one in enumerate(after)))
        wanted = words.index(line["answer"]) if isinstance(line["answer"], str) else line["answer"]
        right += int(np.argmax(scores)) == wanted
    assert found == right / 12


@torch.no_grad()
def test_entropy_is_that_of_the_predictions(bench: Bench, base: Path) -> None:
    heldout = of_lines([{"text": text} for text in TEXTS], "file", measure="entropy")
    found = bench.score(planned("base", base=base), heldout)
    model, values = transformers.AutoModelForCausalLM.from_pretrained(base), []
    for text in TEXTS:
        logits = model(input_ids=torch.tensor([tokens(text)])).logits[0]
        values += entropy(logits).tolist()
    assert found == pytest.approx(np.mean(values), rel=1e-5)


@torch.no_grad()
def test_a_classifier_has_label_loss_and_entropy_of_classes(tmp_path: Path) -> None:
    folder = models.bert_classifier(tmp_path / "base")
    bench = Bench(Input("base", LocalFolder(folder)))
    lines: list[dict[str, Any]] = [{"text": "fine", "label": "yes"}, {"text": "not so", "label": 0}]
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = torch.stack([model(input_ids=torch.tensor([tokens(str(line["text"]))])).logits[0] for line in lines])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]))
    assert bench.score(planned("base", base=folder), of_lines(lines, "file")) == pytest.approx(
        float(expected), rel=1e-5
    )
    unlabelled = of_lines([{"text": line["text"]} for line in lines], "file", measure="entropy")
    expected = entropy(logits).mean()
    assert bench.score(planned("base", base=folder), unlabelled) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InvalidRequest, match="does not continue texts"):
        bench.score(planned("base", base=folder), of_lines([{"text": "a b"}], "file"))


def test_the_base_is_itself_between_candidates_bit_for_bit(base: Path, code: Path) -> None:
    bench = Bench(Input("base", LocalFolder(base)))
    before = {name: one.clone() for name, one in bench.base.loaded.model.state_dict().items()}
    heldout = of_lines([{"text": text} for text in TEXTS], "file")
    first = bench.score(planned("base", base=base), heldout)
    assert bench.score(planned("base + 0.5*code", base=base, code=code), heldout) != first
    too_long = of_lines([{"text": list(range(250)) * 2}], "file")
    with pytest.raises(TooLarge, match="context is 256"):
        bench.score(planned("base + code", base=base, code=code), too_long)
    after = bench.base.loaded.model.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert bench.score(planned("base", base=base), heldout) == first


def test_a_texts_score_does_not_depend_on_its_company(bench: Bench, base: Path, code: Path) -> None:
    found = planned("base + code", base=base, code=code)
    alone = [bench.score(found, of_lines([{"text": text}], "file")) for text in TEXTS]
    counts = [len(tokens(text)) - 1 for text in TEXTS]
    together = bench.score(found, of_lines([{"text": text} for text in TEXTS], "file"))
    mean = sum(one * count for one, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds 0 examples"),
        ("{", "line 1: no JSON"),
        ('{"text": "a"}\n{"prompt": "a", "completion": "b"}', "line 2: is of the form"),
        ('{"texts": "a"}', "line 1: has texts; a line is one of"),
        ('{"text": [1, "a"]}', "a list of token ids"),
        ('{"prompt": "a", "choices": ["b", "b"], "answer": "b"}', "answer is 'b'"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "answer is 2"),
        ('{"text": "a", "label": 1.5}', "label is 1.5"),
    ],
)
def test_lines_that_say_nothing_are_refused_by_number(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read(text, "file")


# ---- a search over a trained patch ----------------------------------------------------------------------------------

SHRUNK = 1.6
"""What the trained LoRA's B is multiplied with, so that its best weight is near 1 / SHRUNK."""


def sequences(count: int, seed: int) -> list[list[int]]:
    """Each token is 3 times the one before plus 1, of 32; one in eight is any."""
    numbers = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        one = [int(numbers.integers(32))]
        for _ in range(15):
            one.append(int(numbers.integers(32)) if numbers.random() < 0.125 else (3 * one[-1] + 1) % 32)
        made.append(one)
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random base, and a LoRA trained on it for a few steps, too large by SHRUNK."""
    folder = tmp_path_factory.mktemp("trained")
    base = tiny.saved(tiny.llama(), folder / "base")
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    model = peft.get_peft_model(tiny.llama(), config)
    optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    rows = torch.tensor(sequences(64, seed=1))
    for _ in range(120):
        optimiser.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= SHRUNK
    model.save_pretrained(str(folder / "patch"), save_embedding_layers=False)
    return base, folder / "patch"


@torch.no_grad()
def losses_by_peft(base: Path, patch: Path, rows: Sequence[Sequence[int]], weights: Sequence[float]) -> list[float]:
    """The held-out loss at each weight, by peft and transformers alone."""
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(patch))
    layers = [one for one in model.modules() if isinstance(one, peft.tuners.lora.LoraLayer)]
    told, found = torch.tensor(rows), []
    for weight in weights:
        for layer in layers:
            layer.scaling["default"] = 2.0 * weight
        found.append(float(model(input_ids=told, labels=told).loss))
    return found


@pytest.mark.parametrize(("optimiser", "near", "gained"), [("cma", 0.02, 0.995), ("spsa", 0.06, 0.99)])
def test_a_search_finds_the_weight_at_which_the_heldout_loss_is_least(
    trained: tuple[Path, Path], optimiser: str, near: float, gained: float
) -> None:
    """gained: of what can be won from the beginning to the least loss. SPSA's last steps are as long as its noise."""
    base, patch = trained
    rows = sequences(32, seed=2)
    grid = [n / 100 for n in range(-20, 150)]
    by_peft = losses_by_peft(base, patch, rows, grid)
    best = grid[int(np.argmin(by_peft))]
    assert 0.3 < best < 0.9
    bench, heldout = Bench(Input("base", LocalFolder(base))), of_lines([{"text": row} for row in rows], "file")

    def score(recipe: Recipe, point: Mapping[str, float]) -> float:
        return bench.score(planned(recipe, base=base, patch=patch), heldout)

    found = search(space(parse("base + patch"), Ref("base")), Course(optimiser, seed=0, evaluations=40), score)
    assert found.best.point["patch"] == pytest.approx(best, abs=near)
    start, best_score = found.start.score, found.best.score
    assert start == pytest.approx(by_peft[grid.index(1.0)], abs=1e-4)
    assert start is not None
    assert best_score is not None
    assert start - best_score >= gained * (start - min(by_peft))


def test_a_scale_of_the_tuned_knobs_reaches_the_parameters_of_methods(trained: tuple[Path, Path]) -> None:
    base, patch = trained
    bench, heldout = (
        Bench(Input("base", LocalFolder(base))),
        HeldOut("loss", tuple({"text": r} for r in sequences(4, 3))),
    )
    found = space(parse("ties(base; patch, density=0.3)"), Ref("base"), parameters={"density": (0.1, 1.0)})
    assert json.loads(json.dumps(found.start)) == {"patch": 1.0, "ties.density": 0.3}
    kept = [
        bench.score(planned(found.recipe_at({"patch": 1.0, "ties.density": one}), base=base, patch=patch), heldout)
        for one in (0.1, 1.0)
    ]
    assert kept[0] != kept[1]
