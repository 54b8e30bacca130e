"""What users do with files, listings and metadata, each function run in a process of its own, as in `scenarios.py`."""

import inspect
import json
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
    assert tree["moved.txt"].security is None
    assert tree["large.bin"].security.safe is False  # a pickle, by its name
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
    from huggingface_hub.errors import BadRequestError, RepositoryNotFoundError

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
    assert not api.repo_exists(repo_id, repo_type="dataset")
    for kind, call in calls:
        error = refused(Exception, call)
        while error is not None and not isinstance(error, (BadRequestError, RepositoryNotFoundError)):
            error = error.__cause__
        assert f"{kind}s are not kept here; this hub holds models and patches only" in str(error), (call, kind, error)


def metadata(repo_id: str) -> None:
    """What model_info, cards and the safetensors calls tell of a sharded model."""
    import huggingface_hub as hf
    from huggingface_hub import HfApi, ModelCard, ModelCardData, metadata_update
    from huggingface_hub.errors import BadRequestError

    api = HfApi()
    api.create_repo(repo_id)
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "auto_map": {"AutoModelForMaskedLM": "m.Own"}}
    shards = {f"model-0000{n}-of-00003.safetensors": f"layer.{n}.weight" for n in (1, 2, 3)}
    weight_map = {tensor: shard for shard, tensor in shards.items()}
    with tempfile.TemporaryDirectory() as folder:
        for shard, tensor in shards.items():
            header = json.dumps({tensor: {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}}).encode()
            Path(folder, shard).write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
        index = {"metadata": {"total_size": 384}, "weight_map": weight_map}
        Path(folder, "model.safetensors.index.json").write_text(json.dumps(index))
        Path(folder, "config.json").write_text(json.dumps(config))
        Path(folder, "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "[MASK]"}}))
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    result = hf.EvalResult(
        task_type="fill-mask", dataset_type="d", dataset_name="D", metric_type="accuracy", metric_value=0.5
    )
    told = ModelCardData(
        license="mit", model_name="Tiny", tags=["tiny"], widget=[{"text": "a [MASK]"}], eval_results=[result]
    )
    card = ModelCard(f"---\n{told.to_yaml()}\n---\n# Tiny\n")
    if hf.__version__ >= "2":  # older ones validate cards at huggingface.co, wherever HF_ENDPOINT leads
        card.validate()
        card.push_to_hub(repo_id)
        metadata_update(repo_id, {"language": ["en"], "license": "apache-2.0"}, overwrite=True)
        refused(ValueError, ModelCard("---\nlicense: mit\nlibrary_name: [a, b]\n---\n").validate)
    else:
        told.language, told.license = ["en"], "apache-2.0"
        card = ModelCard(f"---\n{told.to_yaml()}\n---\n# Tiny\n")
        api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=repo_id)
    assert ModelCard.load(repo_id).data.license == "apache-2.0"
    refused(Exception, api.upload_file, path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=repo_id)

    info: Any = api.model_info(repo_id, files_metadata=True, securityStatus=True)
    assert (info.author, info.library_name, info.pipeline_tag) == ("admin", "transformers", "fill-mask")
    assert (info.safetensors.parameters, info.safetensors.total) == ({"F32": 96}, 96)
    assert info.transformers_info.auto_model == "AutoModelForMaskedLM"
    assert (info.transformers_info.processor, info.transformers_info.custom_class) == ("AutoTokenizer", "m.Own")
    assert info.mask_token == "[MASK]"
    assert info.widget_data == [{"text": "a [MASK]"}]
    assert info.model_index[0]["name"] == "Tiny"
    assert info.card_data.eval_results[0].metric_value == 0.5
    assert {"tiny", "safetensors", "en", "license:apache-2.0"} <= set(info.tags)
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert all(sizes.values())
    used = vars(info).get("used_storage") or info.usedStorage
    assert used >= sum(sizes.values())
    expanded: Any = api.model_info(repo_id, expand=["sha", "downloadsAllTime", "usedStorage"])
    assert (expanded.sha, expanded.siblings) == (info.sha, None)
    assert (vars(expanded).get("used_storage") or expanded.usedStorage) == used
    if hasattr(api, "get_sharded_safetensors_metadata"):
        found = api.get_sharded_safetensors_metadata(repo_id)
        assert found.weight_map == weight_map
        assert found.files_metadata["model-00001-of-00003.safetensors"].tensors["layer.1.weight"].shape == [4, 8]
    parsed = api.get_safetensors_metadata(repo_id)
    assert (parsed.sharded, parsed.weight_map, parsed.parameter_count) == (True, weight_map, {"F32": 96})
    one = api.parse_safetensors_file_metadata(repo_id, "model-00002-of-00003.safetensors")
    assert list(one.tensors) == ["layer.2.weight"]
    if hasattr(api, "resolve_revision"):
        assert api.resolve_revision(repo_id, revision="main").resolved == info.sha
    if hasattr(api, "verify_repo_checksums"):
        hf.snapshot_download(repo_id)
        verified = api.verify_repo_checksums(repo_id)
        assert (verified.mismatches, verified.missing_paths, verified.checked_count) == ([], [], len(sizes))
    refused(BadRequestError, api.model_info, repo_id, expand=["colour"])
    tags = api.get_model_tags()
    assert "fill-mask" in {tag["id"] for tag in tags["pipeline_tag"]}


def lists(repo_id: str) -> None:
    """list_models by what the client can ask for; the names begin with that of `repo_id`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import BadRequestError

    api = HfApi()
    word = repo_id.partition("/")[2]
    base = f"{repo_id}-base"
    relations = {
        "adapter": f"{repo_id}-a",
        "finetune": f"{repo_id}-f",
        "merge": f"{repo_id}-m",
        "quantized": f"{repo_id}-q",
    }
    for name in (base, *relations.values()):
        api.create_repo(name)
    for relation, name in relations.items():
        declared = f"base_model: {base}\nbase_model_relation: {relation}\ntags: [{word}]\nlibrary_name: lib-{word}\n"
        content = f"---\n{declared}pipeline_tag: fill-mask\nlicense: mit\ndatasets: [d]\n---\n"
        api.upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id=name)
    api.update_repo_settings(relations["merge"], gated="auto")

    def found(**asked: Any) -> set[str]:
        return {model.id for model in api.list_models(**asked)}

    all_four = set(relations.values())
    for relation, name in relations.items():
        assert found(filter=f"base_model:{relation}:{base}") == {name}
    assert found(filter=f"base_model:{base}") == all_four
    assert found(filter=[word, f"lib-{word}", "fill-mask", "license:mit", "dataset:d"]) == all_four
    assert found(search=word, author="admin") == all_four | {base}
    assert found(filter=word, pipeline_tag="fill-mask", trained_dataset="d") == all_four
    if "gated" in inspect.signature(api.list_models).parameters:
        assert found(filter=word, gated=True) == {relations["merge"]}
        assert found(filter=word, gated=False) == all_four - {relations["merge"]}
    if "num_parameters" in inspect.signature(api.list_models).parameters:
        assert found(filter=word, num_parameters="min:1") == set()
        refused(BadRequestError, found, filter=word, num_parameters="some")
    if "apps" in inspect.signature(api.list_models).parameters:
        refused(BadRequestError, found, filter=word, apps="vllm")
    assert found(filter=word, inference="warm") == set()
    for sort in ("last_modified", "created_at", "downloads", "likes", "trending_score"):
        ordered = [model.id for model in api.list_models(filter=word, sort=sort, limit=3)]
        assert len(ordered) == 3
    by_age = [model.id for model in api.list_models(filter=word, sort="created_at")]
    assert by_age == list(relations.values())[::-1]
    [full] = api.list_models(filter=f"base_model:merge:{base}", full=True, cardData=True, fetch_config=True)
    told: Any = full
    assert (told.gated, told.card_data.license, [s.rfilename for s in told.siblings]) == (
        "auto",
        "mit",
        [".gitattributes", "README.md"],
    )
    [expanded] = api.list_models(filter=f"base_model:merge:{base}", expand=["downloads", "baseModels", "safetensors"])
    told = vars(expanded)
    assert (told["downloads"], told.get("base_models") or told["baseModels"], told["sha"]) == (0, [base], None)


def downloads(repo_id: str) -> None:
    """The cache after one download, a second one, and a new commit; a broken transfer goes on where it ended."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.file_download import http_get

    api = HfApi()
    api.create_repo(repo_id)
    large = os.urandom(1_500_000)
    api.upload_file(path_or_fileobj=large, path_in_repo="large.bin", repo_id=repo_id)
    first = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo_id)
    for _ in range(2):
        path = Path(hf_hub_download(repo_id, "config.json"))
        assert path.read_bytes() == b"{}"
        assert Path(hf_hub_download(repo_id, "large.bin")).read_bytes() == large
    if hasattr(constants, "X_HF_DOWNLOAD_COUNTER"):
        counts = (api.model_info(repo_id).downloads for _ in range(200))  # counted once the reply has gone out
        assert next(filter(None, counts)) == 1
    cached = try_to_load_from_cache(repo_id, "config.json", revision=first.oid)
    assert cached == str(path)
    api.upload_file(path_or_fileobj=b'{"a": 1}', path_in_repo="config.json", repo_id=repo_id)
    assert Path(hf_hub_download(repo_id, "config.json")).read_bytes() == b'{"a": 1}'
    assert Path(hf_hub_download(repo_id, "config.json", revision=first.oid)).read_bytes() == b"{}"
    snapshot_download(repo_id)
    url = f"{api.endpoint}/{repo_id}/resolve/main/large.bin"
    with tempfile.TemporaryFile() as file:
        file.write(large[:1_000_000])
        http_get(url, file, resume_size=1_000_000, headers={"Authorization": f"Bearer {os.environ['HF_TOKEN']}"})
        file.seek(0)
        assert file.read() == large


def offline(repo_id: str) -> None:
    """What `downloads` left in the cache is enough, with no server to ask."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert Path(hf_hub_download(repo_id, "config.json")).read_bytes() == b'{"a": 1}'
    assert len(list(Path(snapshot_download(repo_id)).iterdir())) == 3
    refused(LocalEntryNotFoundError, hf_hub_download, repo_id, "other.json")


def known_content(repo_id: str, path: str) -> None:
    """The file at `path` under a second name, a third one from another folder, and once more unchanged."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.upload_file(path_or_fileobj=path, path_in_repo="second.bin", repo_id=repo_id)
    api.upload_file(path_or_fileobj=path, path_in_repo="first.bin", repo_id=repo_id)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "third.bin").write_bytes(Path(path).read_bytes())
        api.upload_folder(repo_id=repo_id, folder_path=folder, path_in_repo="deep")
    assert set(api.list_repo_files(repo_id)) == {".gitattributes", "deep/third.bin", "first.bin", "second.bin"}


def first_content(repo_id: str, path: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=path, path_in_repo="first.bin", repo_id=repo_id)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
