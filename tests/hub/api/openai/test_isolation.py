"""Concurrent requests for different variants never mix, in the server as a process and by the unmodified client.

The variants' greedy answers differ on every probe prompt, so that an answer tells which variant gave it. What each must
answer is asked of transformers and peft in this process.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import peft
import pytest
import transformers

from tests.clients.server import Server
from tests.hub.serving import models

pytestmark = pytest.mark.slow

PROBES = ["hello", "x", "the quick brown fox jumps over the lazy dog, and goes on", "a b c d", "0123456789"]
TOKENS = 16
CLIENTS = 8
ROUNDS = 6
VARIANTS = ["admin/base", "admin/base:admin/one", "admin/base:admin/two", "admin/base + 0.7*admin/one - 0.3*admin/two"]
Answers = Mapping[tuple[str, str], str]
"""What a variant says to a probe."""


def by_transformers(model: Any, prompt: str) -> str:
    tokenizer = models.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=models.END)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def expected(serving: Server) -> Answers:
    folder = serving.data.parent
    found: dict[tuple[str, str], str] = {}
    for name, weights in zip(VARIANTS, ({}, {"one": 1.0}, {"two": 1.0}, {"one": 0.7, "two": -0.3}), strict=True):
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
        for adapter, weight in weights.items():
            tuned: Any = peft.PeftModel.from_pretrained(model, str(folder / adapter))
            for module in tuned.modules():
                if isinstance(getattr(module, "scaling", None), dict):  # peft's layers; attention has a number there
                    module.scaling = {key: value * weight for key, value in module.scaling.items()}
            model = tuned.merge_and_unload()
        found |= {(name, probe): by_transformers(model, probe) for probe in PROBES}
    for probe in PROBES:
        assert len({found[name, probe] for name in VARIANTS}) == len(VARIANTS), f"{probe!r} tells none apart"
    return found


def mixed(client: openai.OpenAI, expected: Answers, model_of: Mapping[str, str]) -> Counter[str]:
    """How many of many concurrent answers were another variant's. model_of: what is asked for where a variant is
    meant."""

    def ask(number: int) -> str:
        name, probe = VARIANTS[number % len(VARIANTS)], PROBES[number // len(VARIANTS) % len(PROBES)]
        how = [None, "merged", "run-time"][number % 3] if name != VARIANTS[0] else None
        asked: dict[str, Any] = {"model": model_of[name], "prompt": probe, "max_tokens": TOKENS, "temperature": 0}
        if how is not None:
            asked["extra_body"] = {"adapterhub": {"execution": how}}
        answer = client.completions.create(**asked).choices[0].text
        if answer == expected[name, probe]:
            return "right"
        others = [other for other in VARIANTS if answer == expected[other, probe]]
        return "another's" if others else "nobody's"

    count = ROUNDS * len(VARIANTS) * len(PROBES)
    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(clients.map(ask, range(count)))


def test_concurrent_requests_of_different_variants_never_mix(client: openai.OpenAI, expected: Answers) -> None:
    # first: were two variants exchanged, this would be seen
    swapped = dict(zip(VARIANTS, [VARIANTS[0], VARIANTS[2], VARIANTS[1], VARIANTS[3]], strict=True))
    seen = mixed(client, expected, swapped)
    assert seen["another's"] == seen.total() // 2
    assert mixed(client, expected, {name: name for name in VARIANTS}) == {"right": ROUNDS * len(VARIANTS) * len(PROBES)}
