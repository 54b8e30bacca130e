"""What users do with discussions and pull requests; each function run in a process of its own, nothing imported before.

The administrator's token is in HF_TOKEN; a second user's comes as an argument.
"""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def discussion(repo_id: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    opened = api.create_discussion(repo_id, title="Is it good?", description="I *wonder*")
    assert (opened.num, opened.status, opened.is_pull_request, opened.author) == (1, "open", False, "admin")
    first: Any = opened.events[0]
    assert (first.type, first.content) == ("comment", "I *wonder*")
    assert "<em>wonder</em>" in first.rendered
    said = api.comment_discussion(repo_id, 1, "it is")
    edited = api.edit_discussion_comment(repo_id, 1, said.id, "it is indeed")
    assert (edited.content, edited.edited, edited.number_of_edits) == ("it is indeed", True, 1)
    assert edited.edit_history[0]["raw"] == "it is"
    assert edited.last_edited_by == "admin"
    assert edited.last_edited_at >= said.created_at
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        hidden = api.hide_discussion_comment(repo_id, 1, said.id)
    assert hidden.hidden
    assert api.rename_discussion(repo_id, 1, "It is good").new_title == "It is good"
    assert api.change_discussion_status(repo_id, 1, "closed", comment="done").new_status == "closed"
    found = api.get_discussion_details(repo_id, 1)
    assert [event.type for event in found.events] == ["comment", "comment", "title-change", "comment", "status-change"]
    assert (found.title, found.status, found.diff) == ("It is good", "closed", None)
    for number in range(60):
        api.create_discussion(repo_id, title=f"number {number}")
    assert [one.num for one in api.get_repo_discussions(repo_id)] == list(range(61, 0, -1))
    assert [one.num for one in api.get_repo_discussions(repo_id, discussion_status="closed")] == [1]
    assert list(api.get_repo_discussions(repo_id, discussion_type="pull_request")) == []
    assert list(api.get_repo_discussions(repo_id, author="nobody")) == []


def pull_request(repo_id: str, token: str) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download

    api, other = HfApi(), HfApi(token=token)
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"one\ntwo\n", path_in_repo="a.txt", repo_id=repo_id)
    large = os.urandom(2 << 20)
    files = [CommitOperationAdd("a.txt", b"one\n2\n"), CommitOperationAdd("large.bin", large)]
    proposed = other.create_commit(repo_id, files, commit_message="Better", commit_description="why", create_pr=True)
    assert (proposed.pr_num, proposed.pr_revision) == (1, "refs/pr/1")
    assert proposed.pr_url is not None
    assert proposed.pr_url.endswith(f"/{repo_id}/discussions/1")
    other.upload_file(path_or_fileobj=b"more", path_in_repo="b.txt", repo_id=repo_id, revision="refs/pr/1")
    assert Path(hf_hub_download(repo_id, "large.bin", revision="refs/pr/1")).read_bytes() == large
    assert api.model_info(repo_id, revision="refs/pr/1").sha != api.model_info(repo_id).sha
    assert api.list_repo_files(repo_id) == [".gitattributes", "a.txt"]
    assert "b.txt" in api.list_repo_files(repo_id, revision="refs/pr/1")
    found = api.list_repo_refs(repo_id, include_pull_requests=True)
    assert [ref.ref for ref in found.pull_requests or ()] == ["refs/pr/1"]
    assert [branch.name for branch in found.branches] == ["main"]
    seen = api.get_discussion_details(repo_id, 1)
    assert (seen.status, seen.target_branch, seen.conflicting_files) == ("open", "refs/heads/main", [])
    assert [event.type for event in seen.events] == ["comment", "commit", "commit"]
    assert "-two\n+2\n" in (seen.diff or "")
    assert "Binary files /dev/null and b/large.bin differ" in (seen.diff or "")
    assert refused(lambda: other.merge_pull_request(repo_id, 1)).response.status_code == 403
    api.merge_pull_request(repo_id, 1, comment="thank you")
    merged = api.get_discussion_details(repo_id, 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", api.model_info(repo_id).sha)
    snapshot = Path(snapshot_download(repo_id))
    assert (snapshot / "a.txt").read_bytes() == b"one\n2\n"
    assert api.list_repo_commits(repo_id)[0].title == "Better"


def draft_and_conflict(repo_id: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=b"base", path_in_repo="a.txt", repo_id=repo_id)
    draft = api.create_pull_request(repo_id, title="A draft", description="to be filled")
    assert (draft.status, draft.git_reference) == ("draft", "refs/pr/1")
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo="a.txt", repo_id=repo_id, revision="refs/pr/1")
    assert refused(lambda: api.merge_pull_request(repo_id, 1)).response.status_code == 409
    api.change_discussion_status(repo_id, 1, "open")
    api.upload_file(path_or_fileobj=b"ours", path_in_repo="a.txt", repo_id=repo_id)
    assert api.get_discussion_details(repo_id, 1).conflicting_files == ["a.txt"]
    error = refused(lambda: api.merge_pull_request(repo_id, 1))
    assert "both changed a.txt" in str(error)
    assert refused(lambda: api.get_discussion_details(repo_id, 9)).response.status_code == 404
    first = api.list_repo_commits(repo_id)[1].commit_id
    from_then = api.upload_file(
        path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id, parent_commit=first, create_pr=True
    )
    assert from_then.pr_num == 2
    assert api.get_discussion_details(repo_id, 2).conflicting_files == []


def squash(repo_id: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    for number in range(3):
        api.upload_file(path_or_fileobj=b"%d" % number, path_in_repo=f"{number}.txt", repo_id=repo_id)
    files = api.list_repo_files(repo_id)
    api.super_squash_history(repo_id, commit_message="all of it")
    assert [commit.title for commit in api.list_repo_commits(repo_id)] == ["all of it"]
    assert api.list_repo_files(repo_id) == files


def refused(call: Callable[[], object]) -> Any:
    """The client's error, which `call` must raise."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        call()
    except HfHubHTTPError as error:
        return error
    raise AssertionError("it was not refused")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
