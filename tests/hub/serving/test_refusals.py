"""Whatever the algebra refuses is a request that is wrong for good, in OpenAI's form, wherever it was found out."""

import json
from collections.abc import Iterator

import pytest

from adapterhub.errors import AdapterHubError
from adapterhub.hub.api.errors import error_response, status_of
from adapterhub.hub.serving.protocol import error_from_json, error_to_json
from adapterhub.hub.serving.variants import refusal
from adapterhub.merging.errors import Cancelled, MergingError


def below(kind: type[MergingError]) -> Iterator[type[MergingError]]:
    for one in kind.__subclasses__():
        yield one
        yield from below(one)


KINDS = sorted(set(below(MergingError)) - {Cancelled}, key=lambda kind: kind.__name__)


def made(kind: type[MergingError]) -> MergingError:
    """One of a kind, whatever its constructor takes."""
    error = kind.__new__(kind)
    Exception.__init__(error, "lab/patch: does not fit")
    return error


def answered(error: AdapterHubError) -> tuple[int, dict[str, str]]:
    reply = error_response("/v1/chat/completions", status_of(error), type(error).__name__, str(error))
    return reply.status_code, json.loads(bytes(reply.body))["error"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_engines_refusal_is_a_4xx_with_the_algebras_words(kind: type[MergingError]) -> None:
    told = error_from_json(error_to_json(refusal(made(kind))))
    status, body = answered(told)
    assert status in (400, 413)
    assert body["code"] in ("incompatible_patch", "invalid_request", "too_large")
    assert body["message"] == "lab/patch: does not fit"
    assert body["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", KINDS)
def test_the_web_process_answers_alike_before_the_engine_is_asked(kind: type[MergingError]) -> None:
    status, body = answered(made(kind))
    assert status in (400, 404)
    if answered(refusal(made(kind)))[1]["code"] == "incompatible_patch":
        assert body["code"] == "incompatible_patch"
