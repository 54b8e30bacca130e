"""What the client makes of answers: pages, streams that break, servers that are none."""

import json

import pytest

from adapterhub.cli import client as client_module
from adapterhub.cli.client import Client, outcome, repo_path, split_revision
from adapterhub.cli.errors import CliError, Declined, Missing, Misused
from tests.cli.fake import Answer, serving


def job(state: str, done: int = 0) -> dict[str, object]:
    return {"id": "7", "kind": "merge", "state": state, "progress": {"done": done, "total": 2}, "error": None}


def event(name: str, value: object, id: str) -> str:
    return f": ping\n\nid: {id}\nevent: {name}\ndata: {json.dumps(value)}\n\n"


def test_watching_a_job_goes_on_where_the_stream_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RECONNECT_S", 0.0)
    first = Answer(200, event("progress", job("running", 1), "a"), "text/event-stream")
    second = Answer(200, event("done", job("succeeded", 2), "b"), "text/event-stream")
    with serving(first, second) as fake:
        seen = list(Client(fake.url, "t").watch("7"))
    assert [one["state"] for one in seen] == ["running", "succeeded"]
    assert "Last-Event-ID" not in fake.asked[0][1]
    assert fake.asked[1][1]["Last-Event-ID"] == "a"


def test_watching_gives_up_when_no_server_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RECONNECT_S", 0.0)
    monkeypatch.setattr(client_module, "PATIENCE_S", 0.0)
    with pytest.raises(CliError, match="no adapterhub answers"):
        list(Client("http://127.0.0.1:1", "t").watch("7"))


def test_lists_are_read_page_by_page_up_to_the_limit() -> None:
    pages = [
        Answer(
            200, json.dumps({"items": [{"n": 1}, {"n": 2}], "next": "http://elsewhere/api/patches?cursor=c&limit=3"})
        ),
        Answer(200, json.dumps({"items": [{"n": 3}, {"n": 4}], "next": "http://elsewhere/api/patches?cursor=d"})),
    ]
    with serving(*pages) as fake:
        assert [one["n"] for one in Client(fake.url, "t").items("/api/patches", 3, kind="")] == [1, 2, 3]
    assert [path for path, _ in fake.asked] == ["/api/patches?limit=3", "/api/patches?cursor=c&limit=3"]


def test_the_token_goes_to_the_server_and_nowhere_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Answer(200, "{}"), Answer(200, "{}")) as fake:
        Client(fake.url, "ah_mine").get("/health")
        monkeypatch.setenv("ADAPTERHUB_TOKEN", "ah_of-the-environment")
        Client(fake.url).get("/health")
    sent = [headers["Authorization"] for _, headers in fake.asked]
    assert sent == ["Bearer ah_mine", "Bearer ah_of-the-environment"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Answer(404, '{"error": "as huggingface says it"}'), "as huggingface says it"),
        (Answer(404, '{"error": {"message": "as openai says it"}}'), "as openai says it"),
        (Answer(404, "<html>", headers={"X-Error-Message": "in the header"}), "in the header"),
        (Answer(404, "<html>"), "the server answers 404 Not Found"),
    ],
)
def test_every_dialect_tells_its_error_in_one_sentence(answer: Answer, sentence: str) -> None:
    with serving(answer) as fake, pytest.raises(Missing, match=sentence):
        Client(fake.url, "t").get("/x")


def test_a_server_that_speaks_no_json_is_no_adapterhub() -> None:
    with (
        serving(Answer(200, "<html>hello</html>", "text/html")) as fake,
        pytest.raises(CliError, match="is it an adapterhub"),
    ):
        Client(fake.url, "t").get("/api/jobs")


def test_who_is_not_logged_in_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(Answer(401, '{"detail": "this needs a token"}')) as fake,
        pytest.raises(Declined, match="adapterhub login"),
    ):
        Client(fake.url, "t").get("/api/jobs")


def test_files_of_no_server_say_so() -> None:
    client = Client("http://127.0.0.1:1", "t")
    with pytest.raises(CliError, match="no adapterhub answers"), client.files() as api:
        api.model_info("a/b")


def test_a_failed_job_raises_what_it_failed_of() -> None:
    with pytest.raises(Declined, match="does not fit"):
        outcome(job("failed") | {"error": {"code": "shape_mismatch", "message": "does not fit"}})
    with pytest.raises(Declined, match="cancelled"):
        outcome(job("cancelled"))
    assert outcome(job("succeeded") | {"result": {"repo": "a/b"}}) == {"repo": "a/b"}


def test_repositories_are_named_by_namespace_and_name() -> None:
    assert repo_path("a/b") == "/api/patches/a/b"
    for wrong in ("a", "a/", "a/b/c", ""):
        with pytest.raises(Misused):
            repo_path(wrong)
    assert split_revision("a/b@feat/x") == ("a/b", "feat/x")
    assert split_revision("a/b") == ("a/b", None)
