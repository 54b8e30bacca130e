import re

from starlette.testclient import TestClient


def test_the_docs_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    for path in loaded:
        assert path.startswith("/docs/assets/")
        assert client.get(path).status_code == 200


def test_the_schema_lists_our_own_routes_and_not_the_other_dialects(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["openapi"] == "3.0.3"
    assert "/health" in schema["paths"]
    assert not [path for path in schema["paths"] if path.startswith("/api/models")]


def test_health_says_the_version(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/health/live").json()["status"] == "ok"
    assert client.get("/health/ready").json()["engine"] == "none"
