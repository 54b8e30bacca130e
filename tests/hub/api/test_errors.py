import inspect

import pytest
from starlette.testclient import TestClient

from adapterhub.errors import AdapterHubError
from adapterhub.hub import errors as hub_errors
from adapterhub.hub.api.errors import STATUS, domain_response, header_text, snake_case, status_of
from adapterhub.merging import errors as merging_errors
from adapterhub.storage import errors as storage_errors

ERRORS = [
    value
    for module in (hub_errors, merging_errors, storage_errors)
    for value in vars(module).values()
    if inspect.isclass(value) and issubclass(value, AdapterHubError) and value.__module__ == module.__name__
]
BASES = {AdapterHubError, hub_errors.HubError, hub_errors.Refused, storage_errors.StorageError}


@pytest.mark.parametrize("error", [e for e in ERRORS if e not in BASES], ids=lambda e: e.__name__)
def test_every_domain_error_has_a_status(error: type[AdapterHubError]) -> None:
    found = next((STATUS[kind] for kind in error.__mro__ if kind in STATUS), None)
    assert found is not None or error in (storage_errors.InvalidStoreUrl, hub_errors.LeaseLost)


def test_the_hf_dialect_gets_the_code_that_chooses_the_clients_exception() -> None:
    response = domain_response("/api/models/a/b", hub_errors.RepoNotFound("a/b"))
    assert response.status_code == 404
    assert response.headers["X-Error-Code"] == "RepoNotFound"
    assert b'"error":"a/b: no such repository' in bytes(response.body)


def test_a_dataset_to_the_client_is_a_missing_repository_with_a_warning_that_tells_why() -> None:
    response = domain_response("/api/datasets/a/b", hub_errors.OtherRepoType("a/b", "datasets are not kept here"))
    assert response.headers["X-Error-Code"] == "RepoNotFound"
    assert response.headers["X-Error-Message"] == "a/b: datasets are not kept here"
    assert response.headers["X-HF-Warning"] == "repo-type; datasets are not kept here"


def test_our_own_rest_gets_a_problem_document() -> None:
    response = domain_response("/api/patches/a/b", hub_errors.RepoNotFound("a/b"))
    assert response.headers["content-type"] == "application/problem+json"
    assert b'"code":"repo_not_found"' in bytes(response.body)
    assert b'"title":"Not Found"' in bytes(response.body)


def test_openai_gets_its_error_object() -> None:
    response = domain_response("/v1/chat/completions", hub_errors.ModelNotFound("no model x"))
    assert bytes(response.body) == (
        b'{"error":{"message":"no model x","type":"not_found_error","param":null,"code":"model_not_found"}}'
    )


def test_a_missing_file_names_the_commit_that_was_looked_into() -> None:
    response = domain_response("/a/b/resolve/main/x", hub_errors.EntryNotFound("a/b", "x", "c" * 40))
    assert response.headers["X-Repo-Commit"] == "c" * 40


def test_a_bad_token_is_told_in_the_words_that_the_client_knows() -> None:
    response = domain_response("/api/models/a/b", hub_errors.InvalidToken("expired"))
    assert response.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_an_unavailable_part_says_when_to_come_back() -> None:
    response = domain_response("/v1/models", hub_errors.EngineUnavailable("restarting", retry_after_s=7))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")


def test_a_header_is_one_short_line_of_ascii() -> None:
    text = header_text("a\r\nInjected: yes\nΔ…é" + "x" * 2000)
    assert "\n" not in text
    assert "\r" not in text
    assert text.startswith("a Injected: yes ?...e?x")
    assert len(text) == 1000


def test_codes_are_spelled_in_snake_case() -> None:
    assert snake_case("RepoNotFound") == "repo_not_found"


def test_an_error_outside_the_table_is_the_servers_fault() -> None:
    assert status_of(AdapterHubError("x")) == 500


def test_an_unknown_route_answers_in_the_dialects_shape(client: TestClient) -> None:
    assert client.get("/api/nothing").headers["content-type"] == "application/problem+json"
    assert client.get("/v1/nothing/at/all").json()["error"]["code"] == "not_found"
    reply = client.get("/api/models/a/b/nothing")
    assert reply.headers["X-Error-Code"] == "NotFound"
    assert "error" in reply.json()


def test_a_body_of_the_wrong_shape_is_a_400_that_names_the_field(admin_client: TestClient) -> None:
    reply = admin_client.post("/api/repos/create", json={"private": "perhaps"})
    assert reply.status_code == 400
    assert reply.headers["X-Error-Code"] == "InvalidRequest"
    assert "body.name" in reply.json()["error"]
