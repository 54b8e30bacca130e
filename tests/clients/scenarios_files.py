"""What users do with files, listings and metadata, each function run in a process of its own, as in `scenarios.py`."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def refused(kind: type[Exception], call: Callable[..., object], *arguments: object, **named: object) -> Any:
    """The error of that class that the call raises."""
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{call} was not refused with {kind.__name__}")


def large_file_in_parts(repo_id: str) -> None:
    """Above the server's limit of one part, both by path and as an open file."""
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

    api = HfApi()
    api.create_repo(repo_id)
    content = os.urandom(3_000_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.bin")
        path.write_bytes(content)
        api.upload_file(path_or_fileobj=path, path_in_repo="by-path.bin", repo_id=repo_id)
        with path.open("rb") as file:
            operations = [CommitOperationAdd("as-file.bin", file), CommitOperationAdd("small.bin", os.urandom(2000))]
            api.create_commit(repo_id, operations, commit_message="as an open file")
    for name in ("by-path.bin", "as-file.bin"):
        assert Path(hf_hub_download(repo_id, name)).read_bytes() == content


def copies_between_repositories(repo_id: str) -> None:
    """Large and small files of one repository in another, without the large ones being sent."""
    from huggingface_hub import CommitOperationCopy, HfApi, hf_hub_download

    api = HfApi()
    large, source, target = os.urandom(3_000_000), f"{repo_id}-source", f"{repo_id}-target"
    api.create_repo(source, private=True)
    api.create_repo(target)
    api.upload_file(path_or_fileobj=large, path_in_repo="deep/large.bin", repo_id=source)
    api.upload_file(path_or_fileobj=b"small", path_in_repo="deep/small.txt", repo_id=source)
    if hasattr(CommitOperationCopy, "src_repo_id"):
        copies = [
            CommitOperationCopy(f"deep/{name}", name, src_repo_id=source, src_repo_type="model")
            for name in ("large.bin", "small.txt")
        ]
        api.create_commit(target, copies, commit_message="from another repository")
        assert Path(hf_hub_download(target, "large.bin")).read_bytes() == large
        assert Path(hf_hub_download(target, "small.txt")).read_bytes() == b"small"
    if hasattr(api, "copy_files"):
        api.copy_files(f"hf://{source}/deep/", f"hf://{target}/all/")
        api.copy_files(f"hf://{source}/deep/large.bin", f"hf://{target}/one.bin")
        names = api.list_repo_files(target)
        assert {"all/large.bin", "all/small.txt", "one.bin"} <= set(names), names
        assert Path(hf_hub_download(target, "one.bin")).read_bytes() == large
    found = list(api.list_lfs_files(source))
    assert [(file.filename, file.size) for file in found] == [("deep/large.bin", len(large))]


def duplicated_repository(repo_id: str) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import BadRequestError, HfHubHTTPError

    api = HfApi()
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=os.urandom(2_000_000), path_in_repo="large.bin", repo_id=repo_id)
    api.create_tag(repo_id, tag="v1")
    error = refused(BadRequestError, api.permanently_delete_lfs_files, repo_id, api.list_lfs_files(repo_id))
    assert "a commit never changes here" in str(error)
    if not hasattr(api, "duplicate_repo"):
        return
    copy = f"{repo_id}-copy"
    assert api.duplicate_repo(repo_id, copy, private=True).repo_id == copy
    assert api.duplicate_repo(repo_id, copy, exist_ok=True).repo_id == copy
    assert refused(HfHubHTTPError, api.duplicate_repo, repo_id, copy).response.status_code == 409
    assert api.model_info(copy).private
    assert [c.commit_id for c in api.list_repo_commits(copy)] == [c.commit_id for c in api.list_repo_commits(repo_id)]
    first, second = (Path(hf_hub_download(name, "large.bin", revision="v1")).read_bytes() for name in (repo_id, copy))
    assert first == second


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
