import logging

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from adapterhub.hub.api.middleware import allowed_hosts
from adapterhub.hub.settings import Settings


def test_every_answer_carries_a_request_id(client: TestClient) -> None:
    assert len(client.get("/health").headers["X-Request-Id"]) == 32


def test_the_clients_own_request_id_is_kept(client: TestClient) -> None:
    reply = client.get("/health", headers={"X-Amzn-Trace-Id": "trace-of-the-client"})
    assert reply.headers["X-Request-Id"] == "trace-of-the-client"


def test_a_request_id_that_could_forge_a_log_line_is_replaced(client: TestClient) -> None:
    assert client.get("/health", headers={"X-Request-Id": "a b\tc {}"}).headers["X-Request-Id"] != "a b\tc {}"


def test_a_foreign_host_is_refused(client: TestClient) -> None:
    reply = client.get("/api/models/a/b", headers={"Host": "evil.example:8000"})
    assert reply.status_code == 400
    assert "evil.example" in reply.json()["error"]


def test_only_a_server_for_other_machines_answers_to_any_name() -> None:
    assert allowed_hosts(Settings(host="0.0.0.0")) is None
    assert set(allowed_hosts(Settings(host="0.0.0.0", public_url="https://hub.example/x")) or ()) == {
        "localhost",
        "127.0.0.1",
        "[::1]",
        "0.0.0.0",
        "hub.example",
    }


def test_an_encoded_body_is_refused_before_it_is_read(admin_client: TestClient) -> None:
    reply = admin_client.post("/api/repos/create", content=b"x", headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 415
    assert reply.headers["X-Error-Code"] == "UnsupportedEncoding"


def test_a_body_too_large_to_be_read_whole_is_refused(admin_client: TestClient) -> None:
    reply = admin_client.post(
        "/api/validate-yaml", content=b" " * (17 << 20), headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 413
    assert reply.headers["X-Error-Code"] == "TooLarge"


def test_an_unexpected_error_is_logged_with_the_request_id_and_tells_nothing_else(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    app = client.app
    assert isinstance(app, FastAPI)

    @app.get("/api/models/boom/boom/boom")
    def boom() -> None:
        raise RuntimeError("a secret detail")

    with caplog.at_level(logging.INFO):
        reply = client.get("/api/models/boom/boom/boom")
    assert reply.status_code == 500
    assert reply.headers["X-Error-Code"] == "InternalError"
    assert "secret detail" not in reply.text
    assert reply.headers["X-Request-Id"] in reply.json()["error"]
