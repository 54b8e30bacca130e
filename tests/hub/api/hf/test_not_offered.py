"""What a client may ask for and nobody has here is refused in a sentence that says why."""

import pytest
from starlette.testclient import TestClient


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("GET", "/api/papers/search?q=lora", "papers are not kept here"),
        ("GET", "/api/papers/2106.09685", "papers are not kept here"),
        ("GET", "/api/daily_papers", "papers are not kept here"),
        ("POST", "/api/scheduled-jobs/ann", "programs of users do not run here"),
        ("DELETE", "/api/scheduled-jobs/ann/x", "programs of users do not run here"),
        ("POST", "/api/collections/ann/x-0/resource-group", "there are no resource groups here"),
        ("POST", "/uploads", "files are not kept beside repositories"),
    ],
)
def test_what_is_not_offered_is_refused_with_the_reason(client: TestClient, method: str, path: str, told: str) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "NotOffered")
    assert told in reply.headers["X-Error-Message"]
    assert reply.json()["error"] == reply.headers["X-Error-Message"]
