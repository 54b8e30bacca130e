"""A composition of which one model is computed by another server: adapterhub itself, as a process, over HTTP."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from huggingface_hub import HfApi

from tests.clients.server import Server, running
from tests.hub.api.openai.conftest import push
from tests.hub.serving import models

pytestmark = pytest.mark.slow
EXPRESSION = "proxy(admin/large; 0.8*admin/tuned, anti=admin/base)"
ASKED: dict[str, Any] = {"prompt": "hello", "max_tokens": 16, "temperature": 0}
LISTED = 5


class Pair(NamedTuple):
    """there: has all models; here: of the large one, under two names, configuration and tokenizer alone."""

    there: openai.OpenAI
    here: openai.OpenAI


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("elsewhere")
    models.llama(folder / "base")
    models.llama(folder / "tuned", seed=3)
    models.llama(folder / "large", seed=7, width=64)
    device = {"engine": "embedded", "device": "cpu", "threads": "1"}
    with running(folder / "there", max_logprobs=str(models.VOCABULARY), **device) as there:
        named = {"url": f"{there.url}/v1", "model": "admin/large", "api_key": there.token}
        elsewhere = {
            "admin/large": {**named, "logprobs": models.VOCABULARY},
            "admin/listed": {**named, "logprobs": LISTED},
            "admin/absent": {**named, "url": f"http://127.0.0.1:{free_port()}/v1"},
            "admin/unknown": {**named, "model": "admin/nobody"},
        }
        with running(folder / "here", served_elsewhere=json.dumps(elsewhere), **device) as here:
            filled(there, folder, {})
            filled(here, folder, {"large": list(elsewhere)})
            yield Pair(client(there), client(here))


def filled(server: Server, folder: Path, without_weights: dict[str, list[str]]) -> None:
    api = HfApi(endpoint=server.url, token=server.token)
    for name in ("base", "tuned", "large"):
        for repo_id in without_weights.get(name, ()):
            api.create_repo(repo_id)
            api.upload_folder(repo_id=repo_id, folder_path=folder / name, ignore_patterns=["*.safetensors"])
        if name not in without_weights:
            push(api, folder / name)


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0)


def test_log_probabilities_of_all_tokens_give_the_answer_of_a_local_composition(pair: Pair) -> None:
    local = pair.there.completions.with_raw_response.create(model=EXPRESSION, logprobs=3, **ASKED)
    remote = pair.here.completions.with_raw_response.create(model=EXPRESSION, logprobs=3, **ASKED)
    wanted, found = local.parse().choices[0], remote.parse().choices[0]
    assert found.text == wanted.text
    assert found.logprobs is not None
    assert wanted.logprobs is not None
    assert found.logprobs.token_logprobs == pytest.approx(wanted.logprobs.token_logprobs, abs=1e-3)
    assert wanted.text != pair.there.completions.create(model="admin/large", **ASKED).choices[0].text
    assert "X-Adapterhub-Approximate" not in local.headers
    assert remote.headers["X-Adapterhub-Approximate"].endswith(f": {models.VOCABULARY} log probabilities a token")
    # the recipe means the same wherever it is computed, and who computed it differs
    assert remote.parse().system_fingerprint != local.parse().system_fingerprint


def test_a_list_of_some_is_an_approximation_that_is_told(pair: Pair) -> None:
    found = pair.here.chat.completions.with_raw_response.create(
        model=EXPRESSION.replace("large", "listed"),
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=8,
        temperature=0,
    )
    assert found.parse().choices[0].message.content
    assert found.headers["X-Adapterhub-Approximate"].startswith("admin/listed:")
    assert f": {LISTED} log" in found.headers["X-Adapterhub-Approximate"]


def test_an_endpoint_that_fails_is_named(pair: Pair) -> None:
    with pytest.raises(openai.InternalServerError, match=r"admin/absent: its endpoint does not answer") as absent:
        pair.here.completions.create(model=EXPRESSION.replace("large", "absent"), **ASKED)
    assert absent.value.status_code == 503
    with pytest.raises(openai.BadRequestError, match=r"admin/unknown: its endpoint refuses"):
        pair.here.completions.create(model=EXPRESSION.replace("large", "unknown"), **ASKED)
    # and the server goes on
    assert pair.here.completions.create(model="admin/base", **ASKED).choices[0].text


def test_it_tells_nothing_of_the_prompt(pair: Pair) -> None:
    with pytest.raises(openai.BadRequestError, match=r"echo: admin/large is elsewhere"):
        pair.here.completions.create(model=EXPRESSION, echo=True, logprobs=1, **ASKED)


def test_tokens_are_told_by_their_ids_and_no_more_of_them_than_the_server_allows(pair: Pair) -> None:
    asked = {**ASKED, "max_tokens": 2, "logprobs": 4}
    found = pair.there.completions.create(
        model="admin/base", extra_body={"return_tokens_as_token_ids": True}, **asked
    ).choices[0]
    texts = pair.there.completions.create(model="admin/base", **asked).choices[0]
    assert found.logprobs is not None
    assert texts.logprobs is not None
    assert found.logprobs.tokens is not None
    assert all(token.startswith("token_id:") for token in found.logprobs.tokens)
    ids = [int(token.removeprefix("token_id:")) for token in found.logprobs.tokens]
    assert models.tokenizer().decode(ids) == texts.text
    assert all(
        len(top) == 4 and token in top
        for token, top in zip(found.logprobs.tokens, found.logprobs.top_logprobs or [], strict=True)
    )
    with pytest.raises(openai.BadRequestError, match=r"logprobs: 21; this server tells at most 20 \(ADAPTERHUB_MAX_"):
        pair.here.completions.create(model="admin/base", **{**asked, "logprobs": 21})
