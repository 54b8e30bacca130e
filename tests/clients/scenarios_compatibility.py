"""Small calls that the other scenarios have no use for, and every call that this hub refuses."""

import inspect
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.areas import ELSEWHERE, ELSEWHERE_IN_OLD, OTHER, REFUSED

ARGUMENTS: dict[str, Any] = {
    "repo_id": "admin/absent",
    "from_id": "admin/absent",
    "to_id": "admin/other",
    "bucket_id": "admin/absent",
    "collection_slug": "admin/absent",
    "volumes": [],
    "sleep_time": 3600,
    "command": ["true"],
    "labels": {},
    "files": [("a.txt", "a.txt")],
    "paths": ["a.txt"],
    "add": [(b"text", "a.txt")],
    "destination": "hf://buckets/admin/other",
    "dest": "hf://buckets/admin/other",
    "mount_path": "/data",
}
"""What the required parameters of that name are given; others get "x"."""
OPTIONAL = {"batch_bucket_files": ("add",), "sync_bucket": ("source", "dest")}
"""Parameters without which a method would ask nothing."""


def refused_calls() -> None:
    """Each method for what is not kept here raises, when it asks this hub and the client has it.

    The refused ones of what is kept here are called beside them, but for one that asks nothing unless there are files:
    `scenarios_files.py` has it.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    asked = {name for methods in OTHER.values() for name in methods} - ELSEWHERE
    asked -= ELSEWHERE_IN_OLD if huggingface_hub.__version__.startswith("0.") else set()
    picture = Path(tempfile.mkdtemp(), "picture.png")
    picture.write_bytes(b"PNG")
    given = {**ARGUMENTS, "path": str(picture), "source": str(picture.parent)}
    done = []
    for name in sorted(asked | set(REFUSED) - {"permanently_delete_lfs_files"}):
        method = getattr(api, name, None)
        if method is not None:
            parameters = inspect.signature(method).parameters.values()
            required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
            required += OPTIONAL.get(name, ())
            try:
                result = method(**{parameter: given.get(parameter, "x") for parameter in required})
                if hasattr(result, "__next__"):
                    list(result)
            except Exception as error:  # noqa: BLE001
                print(name, type(error).__name__, str(error).splitlines()[-1:])  # noqa: T201
            else:
                done.append(name)
    assert set(done) <= set(REFUSED)


def small_calls(repo_id: str) -> None:
    """Methods as such where the other scenarios use a function of the same name, or none at all."""
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_url

    api: Any = HfApi()
    api.create_repo(repo_id)
    for name in ("a.txt", "b.txt", "deep/c.txt", "deep/d.txt"):
        api.upload_file(path_or_fileobj=b"text", path_in_repo=name, repo_id=repo_id)
    assert api.get_full_repo_name("x") == "admin/x"
    assert api.repo_info(repo_id).id == repo_id
    assert api.get_hf_file_metadata(url=hf_hub_url(repo_id, "a.txt")).size == 4
    assert Path(api.hf_hub_download(repo_id, "a.txt")).read_bytes() == b"text"
    assert Path(api.snapshot_download(repo_id), "b.txt").exists()
    api.delete_file("a.txt", repo_id)
    api.delete_files(repo_id, ["b.*"])
    api.delete_folder("deep", repo_id)
    assert api.list_repo_files(repo_id) == [".gitattributes"]
    assert api.run_as_future(api.whoami).result()["name"] == "admin"
    if hasattr(api, "get_token_permission"):
        assert api.get_token_permission() == api.whoami()["auth"]["accessToken"]["role"]
    addition = CommitOperationAdd("large.bin", os.urandom(1 << 20))
    api.preupload_lfs_files(repo_id, [addition])
    api.create_commit(repo_id, [addition], commit_message="preuploaded")
    assert api.file_exists(repo_id, "large.bin")
    if hasattr(api, "update_repo_visibility"):
        api.update_repo_visibility(repo_id, private=True)
        assert api.model_info(repo_id).private
    api.auth_check(repo_id)
    if hasattr(api, "upload_large_folder"):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "e.txt").write_text("text")
            api.upload_large_folder(repo_id=repo_id, folder_path=folder, repo_type="model", print_report=False)
        assert api.file_exists(repo_id, "e.txt")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
