"""Models elsewhere: what a list of the likeliest tokens says of all, and who computes while they are asked."""

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.hub.errors import EngineUnavailable
from adapterhub.hub.serving import compositions
from adapterhub.hub.serving.endpoints import spread
from adapterhub.hub.serving.protocol import Composition, Endpoint, Source, VariantSpec
from adapterhub.hub.serving.residents import Residents
from adapterhub.hub.serving.scheduler import Scheduler
from tests.hub.serving import models
from tests.hub.serving.passes import Collecting, greedy


@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=40), st.data())
def test_a_list_of_some_gives_a_distribution_that_agrees_with_it(parts: list[float], data: st.DataObject) -> None:
    total = math.fsum(parts)
    logprobs = sorted((math.log(part / total) for part in parts), reverse=True)
    listed = data.draw(st.integers(1, len(logprobs)))
    found = spread(dict(enumerate(logprobs[:listed])), len(logprobs), "x").double()
    assert found[:listed].tolist() == pytest.approx(logprobs[:listed], abs=1e-5)
    rest = found[listed:]
    assert rest.numel() == 0 or float(rest.max()) <= logprobs[listed - 1] + 1e-5
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("told", [{}, {7: -1.0}, {-1: -1.0}])
def test_tokens_that_are_not_there_are_refused(told: dict[int, float]) -> None:
    with pytest.raises(EngineUnavailable, match="x: its endpoint told of other tokens than the 7 that are known here"):
        spread(told, 7, "x")


class Slow(BaseHTTPRequestHandler):
    """Tells of every next token that it is the first one's, once it may."""

    may = threading.Event()
    asked = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.set()
        assert self.may.wait(60)
        told = {"choices": [{"logprobs": {"top_logprobs": [{"token_id:10": -0.1, "token_id:11": -3.0}]}}]}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def slow() -> Iterator[str]:
    """The address of such a server."""
    Slow.may.clear()
    Slow.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        Slow.may.set()
        server.shutdown()
        thread.join()


def composed(base: Source, url: str) -> VariantSpec:
    there = replace(models.spec("demo/there", base), endpoint=Endpoint(url, "there"))
    here = models.spec("demo/base", base)
    told = Composition("ensemble", {}, (0.0, 1.0), (here, there))  # all of what is said is said there
    return VariantSpec(f"sha256:{url}", "ensemble", here.sources, told)


def test_others_compute_while_an_endpoint_is_waited_for(slow: str, residents: Residents, base: Source) -> None:
    done = {"waiting": threading.Event(), "other": threading.Event()}
    waiting = Collecting(compositions.lease(residents, composed(base, slow)), greedy("hello", 3), done["waiting"].set)
    other = Collecting(residents.lease(models.spec("demo/base", base)), greedy("hello", 5), done["other"].set)
    scheduler = Scheduler()
    scheduler.submit(waiting.lease.base, None, waiting)
    scheduler.start()
    assert Slow.asked.wait(60)
    scheduler.submit(other.lease.base, other.lease.variant, other)
    assert done["other"].wait(60)
    assert not done["waiting"].is_set()
    Slow.may.set()
    assert done["waiting"].wait(60)
    assert (waiting.error, other.error) == (None, None)
    assert waiting.text == models.tokenizer().decode([10, 10, 10])


def test_an_endpoint_that_fails_meanwhile_ends_the_request(residents: Residents, base: Source) -> None:
    done = threading.Event()
    work = Collecting(
        compositions.lease(residents, composed(base, "http://127.0.0.1:1/v1")), greedy("hello", 3), done.set
    )
    scheduler = Scheduler()
    scheduler.submit(work.lease.base, None, work)
    scheduler.start()
    assert done.wait(60)
    assert isinstance(work.error, EngineUnavailable)
    assert "its endpoint does not answer" in str(work.error)
