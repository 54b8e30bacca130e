"""What the external engine sends, as vLLM's own types read it, and what those send, as the engine reads it."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.hub.serving import remote_answers
from adapterhub.hub.serving.protocol import Delta, Finished, Generate, Sampling, Started, TokenLogprob
from adapterhub.hub.serving.remote import Vllm
from tests.clients.server import ROOT

CHAT = [{"role": "user", "content": "hello"}]
EVERYTHING = Sampling(
    temperature=0.5,
    top_p=0.9,
    top_k=4,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.4,
    logit_bias={7: -2.0},
    seed=11,
)
ASKED = [
    Generate("hello", max_tokens=5),
    Generate([1, 2, 3], max_tokens=5, n=2, stop=("END",), sampling=EVERYTHING, logprobs=3),
    Generate(messages=CHAT, max_tokens=5, sampling=EVERYTHING, logprobs=2, json_schema={"type": "object"}),
    Generate(messages=CHAT, sampling=Sampling(temperature=0.0)),
]


@pytest.mark.slow
def test_vllms_own_types_read_every_request_and_we_its_replies(environment_of: Callable[[str], Path]) -> None:
    served: Any = None
    address = Vllm(served).addressed("lab/base", "sha256-1")
    bodies = [
        {"route": remote_answers.route(one), "body": remote_answers.body(one, address), "max_tokens": 5}
        for one in ASKED
    ]
    load = {"route": "/v1/load_lora_adapter", "body": {"lora_name": "sha256-1", "lora_path": "/x"}, "max_tokens": 0}
    answer = told_by_vllm(environment_of("vllm"), [*bodies, load])
    assert [one["unknown"] for one in answer["understood"]] == [[]] * 5
    for asked, found in zip(ASKED, answer["understood"], strict=False):
        check_sampling(asked, found)
    check_replies(answer["sent"])


def told_by_vllm(python: Path, requests: list[dict[str, Any]]) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ADAPTERHUB_"))}
    done = subprocess.run(
        [str(python), "-m", "tests.clients.scenarios_vllm_requests"],
        input=json.dumps(requests),
        env={**environment, "VLLM_TARGET_DEVICE": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("ANSWER"))[len("ANSWER") :])


def check_sampling(asked: Generate, found: dict[str, Any]) -> None:
    """Nothing is left to vLLM's defaults, which are those of the model's generation_config.json."""
    wanted = asked.sampling
    for name in ("temperature", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"):
        # what greedy decoding does not use, vLLM sets to where it has no effect
        if wanted.temperature or name == "temperature":
            assert found[name] == getattr(wanted, name), name
    assert found["top_k"] in ((0, -1) if wanted.top_k is None else (wanted.top_k,))  # both mean all
    assert found["logit_bias"] == {str(token): bias for token, bias in wanted.logit_bias.items()}
    assert (found["n"], found["stop"], found["logprobs"]) == (asked.n, list(asked.stop), asked.logprobs)
    assert found["has_schema"] == (asked.json_schema is not None)
    assert found["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def check_replies(sent: dict[str, list[dict[str, Any]]]) -> None:
    def read(request: Generate) -> list[Any]:
        async def chunks() -> AsyncIterator[dict[str, Any]]:
            for chunk in sent[remote_answers.route(request)]:
                yield chunk

        async def gathered() -> list[Any]:
            return [event async for event in remote_answers.events(chunks(), request, "ah-1", 0.0)]

        return asyncio.run(gathered())

    assert read(Generate("x", logprobs=1)) == [
        Started(5, "ah-1", 0.0),
        Delta(0, "a", (TokenLogprob("a", -0.5, [("a", -0.5)]),)),
        Delta(0, "b", (TokenLogprob("b", -0.5, [("b", -0.5)]),)),
        Finished(0, "stop", 2, by_text=True),
    ]
    assert read(Generate(messages=CHAT, logprobs=1)) == [
        Started(5, "ah-1", 0.0),
        Delta(0, "a", (TokenLogprob("a", -0.5, [("a", -0.5)]),)),
        Delta(0, "b", (TokenLogprob("b", -0.5, [("b", -0.5)]),)),
        Finished(0, "length", 2),
    ]
