"""What the client raises for each refusal, as in `scenarios.py`."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen


def every_class(repo_id: str) -> None:
    """The client's own class for each, told to the owner, to another user and to nobody in particular."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import (
        BadRequestError,
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api, nobody = HfApi(), HfApi(token=False)
    word = repo_id.partition("/")[2]
    other = HfApi(token=_rest("POST", "/api/admin/users", {"name": f"u{word}"})["token"])
    for kind in ("private", "gated", "disabled"):
        api.create_repo(f"{repo_id}-{kind}", private=kind == "private")
        api.upload_file(path_or_fileobj=b"text", path_in_repo="a.txt", repo_id=f"{repo_id}-{kind}")
    api.update_repo_settings(f"{repo_id}-gated", gated="manual")
    _rest("PUT", f"/api/admin/repos/{repo_id}-disabled", {"disabled": True})

    for one in (other, nobody):
        for name in (f"{repo_id}-private", f"{repo_id}-absent"):
            _refused(RepositoryNotFoundError, one.model_info, name)
            _refused(RepositoryNotFoundError, one.hf_hub_download, name, "a.txt")
            _refused(RepositoryNotFoundError, one.list_repo_files, name)
        error = _refused(GatedRepoError, one.hf_hub_download, f"{repo_id}-gated", "a.txt")
        assert error.response.headers["X-Error-Code"] == "GatedRepo"
        _refused(DisabledRepoError, one.model_info, f"{repo_id}-disabled")
        _refused(DisabledRepoError, one.list_repo_files, f"{repo_id}-disabled")

    name = f"{repo_id}-private"
    for call in (api.model_info, api.list_repo_files, api.list_repo_commits):
        _refused(RevisionNotFoundError, call, name, revision="no-such-branch")
    head = api.model_info(name).sha
    error = _refused(EntryNotFoundError, api.get_hf_file_metadata, url=hf_hub_url(name, "b.txt"))
    assert error.response.headers["X-Repo-Commit"] == head
    _refused(EntryNotFoundError, lambda: list(api.list_repo_tree(name, "no-such-folder")))
    _refused(BadRequestError, api.create_repo, f"{repo_id}-data", repo_type="dataset")
    error = _refused(
        HfHubHTTPError, other.upload_file, path_or_fileobj=b"", path_in_repo="b", repo_id=f"{repo_id}-gated"
    )
    assert error.response.status_code == 403


def too_large(repo_id: str) -> None:
    """A file above the server's limit is refused before it is sent, in words that name the limit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    with_too_much: dict[str, Any] = {"path_or_fileobj": os.urandom(3 << 20), "path_in_repo": "a.bin"}
    error = _refused(ValueError, api.upload_file, repo_id=repo_id, **with_too_much)
    assert "LFS batch API returned errors" in str(error)
    assert "413" in str(error) or str(2 << 20) in str(error), str(error)
    assert not api.file_exists(repo_id, "a.bin")


def _rest(method: str, path: str, body: object) -> Any:
    """The JSON that our own REST answers to the administrator."""
    headers = {"Authorization": f"Bearer {os.environ['HF_TOKEN']}", "Content-Type": "application/json"}
    request = Request(os.environ["HF_ENDPOINT"] + path, json.dumps(body).encode(), headers, method=method)
    with urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


def _refused(kind: type[Exception], call: Callable[..., object], *arguments: object, **named: object) -> Any:
    """The error of that class that the call raises."""
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{call} was not refused with {kind.__name__}")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
