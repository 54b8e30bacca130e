"""Datasets, spaces, kernels and buckets: none are kept here, and whoever asks is told so."""

import pytest
from starlette.testclient import TestClient

SENTENCE = "are not kept here; this hub holds models and patches only"


@pytest.mark.parametrize(
    "path", ["/api/datasets/a/b", "/api/buckets/a/b", "/datasets/a/b/resolve/main/x.csv", "/kernels/a/b", "/spaces/a/b"]
)
def test_one_that_is_read_is_missing(client: TestClient, path: str) -> None:
    for method in ("GET", "HEAD"):
        reply = client.request(method, path)
        assert (reply.status_code, reply.headers["X-Error-Code"]) == (404, "RepoNotFound")
        assert SENTENCE in reply.headers["X-Error-Message"]
        assert SENTENCE in reply.headers["X-HF-Warning"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/datasets"),
        ("GET", "/api/spaces"),
        ("POST", "/api/datasets/a/b/preupload/main"),
        ("GET", "/datasets/"),
        ("GET", "/api/datasets-tags-by-type"),
        ("PATCH", "/api/spaces/a/b/settings"),
        ("DELETE", "/api/kernels/a/b/branch/x"),
        ("GET", "/api/buckets/a"),
        ("POST", "/spaces/a/b.git/info/lfs/objects/batch"),
    ],
)
def test_anything_else_is_refused(client: TestClient, method: str, path: str) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.headers["X-Error-Code"]) == (400, "UnsupportedRepoType")
    assert SENTENCE in reply.headers["X-Error-Message"]


def test_a_person_reads_the_sentence_on_a_page(client: TestClient) -> None:
    page = client.get("/datasets/a/b", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert f"datasets {SENTENCE}" in page.text
