"""A thousand random loads, evictions and requests: the base stays itself bit for bit, each variant is its merged files.

Eight LoRAs and their sums share one base in a pool that has room for few of them merged. At each step the model is
compared with one that transformers loads from files that the merge engine wrote. Where the variant is merged its
weights are the same bit for bit, and its logits to 5e-6, by which a product of matrices varies with the place of its
operands in memory; where it lies beside the weights logits are the same to rounding. Prompts of 200 tokens come again
and again under other weights, where a cache kept by mistake would answer for another variant.
"""

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from adapterhub.hub.serving.mixture import Adapter
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, VariantSpec
from adapterhub.hub.serving.resident import Base
from adapterhub.hub.serving.residents import Lease, Residents
from adapterhub.merging import engine
from adapterhub.merging.plan import plan
from adapterhub.merging.recipes.canonical import Input
from adapterhub.merging.recipes.expression import parse
from tests.hub.serving import models

pytestmark = pytest.mark.slow

STEPS = 1000
TARGETS = (("q_proj", "v_proj"), ("o_proj", "down_proj"), ("gate_proj", "up_proj", "k_proj"))


def digest(model: Any) -> str:
    state = model.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def prompts() -> list[torch.Tensor]:
    """Short ones, and two of 200 tokens, one of which differs from the other in its last token alone."""
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(0, 256, (1, 200), generator=generator)
    other = long.clone()
    other[0, -1] = (other[0, -1] + 1) % 256
    return [torch.randint(0, 256, (1, size), generator=generator) for size in (1, 7, 33)] + [long, other]


def specs(folder: Path, base: Path, count: int) -> list[VariantSpec]:
    """The base, LoRAs on it, and weighted sums of two."""
    sources = {"demo/base": models.source("demo/base", base)}
    for number in range(count):
        models.lora(base, folder / f"l{number}", seed=number + 1, targets=TARGETS[number % len(TARGETS)])
        sources[f"demo/l{number}"] = models.source(f"demo/l{number}", folder / f"l{number}", "lora")
    expressions = ["demo/base", *(f"demo/base + demo/l{n}" for n in range(count))]
    expressions += [f"demo/base + 0.7*demo/l{n} - 0.3*demo/l{n + 1}" for n in range(count - 1)]
    return [
        models.spec(text, *(sources[str(ref)] for ref in sorted(parse(text).references(), key=str)))
        for text in expressions
    ]


def merged(spec: VariantSpec, out: Path) -> Any:
    """What transformers loads from the files that a merge writes."""
    inputs = {}
    for ref in parse(spec.expression).references():
        one = next(source for source in spec.sources if source.reference == str(ref))
        inputs[ref] = Input(one.name, one.folder, one.path, one.kind)
    engine.run(plan(parse(spec.expression), inputs, memory_bytes=1 << 30), out)
    return loaded(out)


def logits(lease: Lease, prompt: torch.Tensor) -> torch.Tensor:
    base = lease.base
    base.apply(base.mixture if isinstance(lease.variant, Adapter) else lease.variant)
    lease.loaded.before_pass()
    found: torch.Tensor = base.loaded.model(prompt).logits
    return found


@torch.inference_mode()
def walk(folder: Path, steps: int, seed: int) -> Counter[str]:
    """Random steps; how often each sort of thing happened. Raises AssertionError."""
    base = models.llama(folder / "base")
    several = specs(folder, base, 8)
    expected: dict[tuple[str, int], torch.Tensor] = {}
    weights: dict[str, str] = {}
    asked = prompts()
    for number, spec in enumerate(several):
        model = merged(spec, folder / f"merged{number}") if number else loaded(base)
        weights[spec.vid] = digest(model)
        for place, prompt in enumerate(asked):
            expected[spec.vid, place] = model(prompt).logits
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    residents = Residents(torch.device("cpu"), 2 * size)
    draw, happened = random.Random(seed), Counter[str]()
    held: list[Lease] = []
    first = residents.lease(several[0])
    resident, pristine = first.base, digest(first.base.loaded.model)
    held.append(first)
    for step in range(steps):
        spec = draw.choice(several)
        how = draw.choice([MERGED, MERGED, RUN_TIME, None])
        lease = residents.lease(spec, how)
        assert lease.base is resident
        place = draw.randrange(len(asked))
        found, wanted = logits(lease, asked[place]), expected[spec.vid, place]
        if isinstance(lease.variant, Adapter):
            happened["beside"] += 1
            assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max()), (step, spec.expression)
        else:
            happened["merged" if lease.variant else "base"] += 1
            assert digest(resident.loaded.model) == weights[spec.vid], (step, spec.expression)
            assert float((found - wanted).abs().max()) < 5e-6 * float(wanted.abs().max()), (step, spec.expression)
        held.append(lease)
        while len(held) > 3:
            held.pop(draw.randrange(1, len(held))).release()
        if step % 50 == 0:
            resident.apply(None)
            assert digest(resident.loaded.model) == pristine, step
    resident.apply(None)
    assert digest(resident.loaded.model) == pristine
    happened["evictions"] = residents.state()["evictions"]
    return happened


def loaded(folder: Path) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model.eval()


def test_a_thousand_random_steps_leave_the_base_and_every_variant_exact(tmp_path: Path) -> None:
    happened = walk(tmp_path, STEPS, seed=1)
    assert all(happened[what] > 20 for what in ("base", "merged", "beside", "evictions")), happened


def test_the_walk_notices_variants_that_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Base.apply
    other: list[Any] = []

    def exchanged(self: Base, variant: Any) -> None:
        if variant is not None and not other:
            other.append(variant)
        apply(self, other[0] if variant is not None else None)

    monkeypatch.setattr(Base, "apply", exchanged)
    with pytest.raises(AssertionError):
        walk(tmp_path, 40, seed=1)


def test_the_walk_notices_a_base_that_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Base.apply

    def writing(self: Base, variant: Any) -> None:
        apply(self, variant)
        if variant is not None:
            next(iter(self._pristine.values())).view(-1)[0] += 1e-3

    monkeypatch.setattr(Base, "apply", writing)
    with pytest.raises(AssertionError):
        walk(tmp_path, 60, seed=1)
