"""What users do with files, listings and metadata, each function run in a process of its own, as in `scenarios.py`."""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
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


NAMES = (
    "模型/权重 一.txt",
    "العربية/ملف.txt",
    "emoji 🎉.txt",
    "a b/c d.txt",
    "100%.txt",
    "a%20b.txt",
    "#hash.txt",
    "what?.txt",
    "c++.txt",
    "amp&eq=;at@,'(1)'!.txt",
    "ünïcödé.bin",
)
"""File names in any script, and with every sign that means something in a URL."""


def names_in_any_script(repo_id: str) -> None:
    from huggingface_hub import CommitOperationCopy, HfApi, HfFileSystem, hf_hub_download, snapshot_download

    api = HfApi()
    api.create_repo(repo_id)
    contents = {name: name.encode() + (b"\0" * 2000 if name.endswith(".bin") else b"") for name in NAMES}
    for name, content in list(contents.items())[:3]:
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    assert set(api.list_repo_files(repo_id)) == {".gitattributes", *NAMES}
    assert [e.path for e in api.get_paths_info(repo_id, list(NAMES))] == list(NAMES)
    for name, content in contents.items():
        assert Path(hf_hub_download(repo_id, name)).read_bytes() == content
    snapshot = Path(snapshot_download(repo_id))
    assert {name: (snapshot / name).read_bytes() for name in NAMES} == contents
    system = HfFileSystem(skip_instance_cache=True)
    found = {path.removeprefix(f"{repo_id}/") for path in system.find(repo_id)}
    assert found == {".gitattributes", *NAMES}
    copies = [CommitOperationCopy(name, f"kopie/{name}") for name in NAMES]
    api.create_commit(repo_id, copies, commit_message="copies")
    assert Path(hf_hub_download(repo_id, f"kopie/{NAMES[0]}")).read_bytes() == contents[NAMES[0]]
    for name in NAMES:
        api.delete_file(name, repo_id)
    assert {path for path in api.list_repo_files(repo_id) if not path.startswith("kopie/")} == {".gitattributes"}


def file_system(repo_id: str) -> None:
    """HfFileSystem on main, on a branch with a slash in its name, and on a full ref."""
    from huggingface_hub import HfApi, HfFileSystem

    api = HfApi()
    api.create_repo(repo_id)
    api.create_branch(repo_id, branch="feat/x")
    large = os.urandom(1_500_000)
    for at in (repo_id, f"{repo_id}@feat%2Fx"):
        system: Any = HfFileSystem(skip_instance_cache=True)
        with system.open(f"{at}/deep/a.txt", "w") as file:
            file.write("text")
        with system.open(f"{at}/large.bin", "wb") as file:
            file.write(large)
        system.invalidate_cache()
        assert system.read_text(f"{at}/deep/a.txt") == "text"
        assert system.cat_file(f"{at}/large.bin", start=1000, end=2000) == large[1000:2000]
        assert system.exists(f"{at}/large.bin")
        assert not system.exists(f"{at}/nothing")
        assert system.isdir(f"{at}/deep")
        names = {Path(entry["name"]).name: entry for entry in system.ls(at, detail=True)}
        assert {name: entry["type"] for name, entry in names.items()} == {
            ".gitattributes": "file",
            "deep": "directory",
            "large.bin": "file",
        }
        told = system.info(f"{at}/large.bin", expand_info=True)
        assert told["size"] == len(large)
        assert told["last_commit"].title.startswith("Upload large.bin")
        assert system.info(f"{at}/deep", expand_info=True)["last_commit"].title.startswith("Upload deep/a.txt")
        assert system.modified(f"{at}/large.bin") == told["last_commit"].date
        assert [Path(path).name for path in system.glob(f"{at}/**/*.txt")] == ["a.txt"]
        system.cp_file(f"{at}/large.bin", f"{at}/deep/copy.bin")
        system.mv(f"{at}/deep/a.txt", f"{at}/moved.txt")
        system.invalidate_cache()
        found = {path.rpartition("/")[2] for path in system.find(at)}
        assert found == {".gitattributes", "copy.bin", "large.bin", "moved.txt"}
        assert system.read_bytes(f"{at}/deep/copy.bin") == large
        assert system.du(at) > 2 * len(large)
        with tempfile.TemporaryDirectory() as folder:
            system.get_file(f"{at}/large.bin", f"{folder}/large.bin")
            assert Path(folder, "large.bin").read_bytes() == large
            Path(folder, "put.txt").write_text("put")
            system.put_file(f"{folder}/put.txt", f"{at}/put.txt")
        system.rm(f"{at}/deep", recursive=True)
        system.rm(f"{at}/put.txt")
        system.invalidate_cache()
        assert {path.rpartition("/")[2] for path in system.find(at)} == {".gitattributes", "large.bin", "moved.txt"}
    whole: Any = HfFileSystem(skip_instance_cache=True)
    assert whole.read_text(f"{repo_id}@refs%2Fheads%2Ffeat%2Fx/moved.txt") == "text"
    assert whole.isfile(f"{repo_id}@{api.model_info(repo_id).sha}/large.bin")
    tree: dict[str, Any] = {entry.path: entry for entry in api.list_repo_tree(repo_id, expand=True)}
    assert tree["moved.txt"].last_commit.title
    assert {entry.path for entry in api.get_paths_info(repo_id, ["large.bin"], expand=True)} == {"large.bin"}


def patterns(repo_id: str) -> None:
    """What is sent, deleted, ignored and fetched by patterns."""
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()
    api.create_repo(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.txt", "b.log", "deep/c.txt", "deep/d.bin", "build/e.txt"):
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=["*.txt", "*.bin"], ignore_patterns="*/d.*"
        )
        assert api.list_repo_files(repo_id) == [".gitattributes", "a.txt", "build/e.txt", "deep/c.txt"]
        api.upload_file(path_or_fileobj=b"build/\n*.log\n", path_in_repo=".gitignore", repo_id=repo_id)
        Path(folder, "build", "f.txt").write_text("ignored")
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, delete_patterns="deep/*.txt", allow_patterns=["b*", "deep/d*"]
        )
    assert api.list_repo_files(repo_id) == [".gitattributes", ".gitignore", "a.txt", "build/e.txt", "deep/d.bin"]
    snapshot = Path(snapshot_download(repo_id, allow_patterns=["*.txt", "deep/*"], ignore_patterns="build/*"))
    assert {path.name for path in snapshot.rglob("*") if path.is_file()} == {"a.txt", "d.bin"}
    with tempfile.TemporaryDirectory() as folder:
        snapshot_download(repo_id, local_dir=folder)
        assert Path(folder, "build", "e.txt").read_text() == "build/e.txt"


def other_types_are_refused(repo_id: str) -> None:
    """Whatever is asked about a dataset, space, kernel or bucket gets the one sentence."""
    from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
    from huggingface_hub.errors import BadRequestError

    api = HfApi()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("dataset", partial(api.dataset_info, repo_id)),
        ("dataset", lambda: list(api.list_datasets(author="admin"))),
        ("dataset", api.get_dataset_tags),
        ("dataset", partial(HfFileSystem().ls, f"datasets/{repo_id}")),
        ("space", partial(api.space_info, repo_id)),
        ("space", lambda: list(api.list_spaces())),
        ("space", partial(api.get_space_runtime, repo_id)),
        ("space", partial(api.restart_space, repo_id)),
        ("space", partial(api.add_space_secret, repo_id, "K", "v")),
        ("space", partial(api.create_repo, repo_id, repo_type="space", space_sdk="gradio")),
    ]
    upload = partial(api.upload_file, path_or_fileobj=b"x", path_in_repo="a.txt", repo_id=repo_id)
    for kind in ("dataset", "space"):
        calls += [
            (kind, partial(api.delete_repo, repo_id, repo_type=kind)),
            (kind, partial(api.repo_exists, repo_id, repo_type=kind)),
            (kind, partial(api.list_repo_files, repo_id, repo_type=kind)),
            (kind, partial(api.list_repo_refs, repo_id, repo_type=kind)),
            (kind, partial(api.list_repo_commits, repo_id, repo_type=kind)),
            (kind, partial(next, api.list_lfs_files(repo_id, repo_type=kind))),
            (kind, partial(api.create_branch, repo_id, branch="x", repo_type=kind)),
            (kind, partial(api.move_repo, repo_id, f"{repo_id}-x", repo_type=kind)),
            (kind, partial(api.update_repo_settings, repo_id, private=True, repo_type=kind)),
            (kind, partial(api.auth_check, repo_id, repo_type=kind)),
            (kind, partial(api.super_squash_history, repo_id, repo_type=kind)),
            (kind, partial(upload, repo_type=kind)),
            (kind, partial(snapshot_download, repo_id, repo_type=kind)),
            (kind, partial(hf_hub_download, repo_id, "a.txt", repo_type=kind)),
        ]
    if hasattr(api, "create_bucket"):
        calls.append(("bucket", partial(api.create_bucket, repo_id)))
        calls.append(("bucket", lambda: list(api.list_buckets())))
    if hasattr(api, "kernel_info"):
        calls.append(("kernel", partial(api.kernel_info, repo_id)))
    for kind, call in calls:
        error = refused(Exception, call)
        while error is not None and not isinstance(error, BadRequestError):
            error = error.__cause__
        assert f"{kind}s are not kept here; this hub holds models and patches only" in str(error), (call, kind, error)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
