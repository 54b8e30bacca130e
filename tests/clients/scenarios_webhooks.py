"""What users do with webhooks; each function run in a process of its own, nothing imported before."""

import sys
from collections.abc import Callable
from typing import Any


def webhooks(repo_id: str, url: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import BadRequestError

    api = HfApi()
    api.create_repo(repo_id)
    made = api.create_webhook(url=url, watched=[{"type": "model", "name": repo_id}], secret="secret of the test")
    assert (made.url, made.secret, made.disabled) == (url, "secret of the test", False)
    assert made.domains == ["repo", "discussion"] or sorted(made.domains) == ["discussion", "repo"]
    assert [(w.type, w.name) for w in made.watched] == [("model", repo_id)]
    assert made.id in [one.id for one in api.list_webhooks()]
    found = api.get_webhook(made.id)
    assert found.secret != "secret of the test"
    assert found.watched == made.watched
    changed = api.update_webhook(made.id, domains=["repo"])
    assert (changed.domains, changed.watched) == (["repo"], made.watched)
    assert api.disable_webhook(made.id).disabled
    api.upload_file(path_or_fileobj=b"unseen", path_in_repo="a.txt", repo_id=repo_id)
    assert not api.enable_webhook(made.id).disabled
    api.upload_file(path_or_fileobj=b"seen", path_in_repo="a.txt", repo_id=repo_id)
    error = refused(lambda: api.create_webhook(url="ftp://x", watched=[{"type": "user", "name": "admin"}]))
    assert isinstance(error, BadRequestError)
    assert "only http:// and https://" in str(error)
    assert refused(lambda: api.get_webhook("no-such-webhook")).response.status_code == 404


def refused(call: Callable[[], object]) -> Any:
    """The client's error, which `call` must raise."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        call()
    except HfHubHTTPError as error:
        return error
    raise AssertionError("it was not refused")


def forget() -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    for one in api.list_webhooks():
        api.delete_webhook(one.id)
    assert list(api.list_webhooks()) == []


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
