"""What users do with unmodified clients, each function run in a process of its own.

HF_ENDPOINT is read when huggingface_hub is imported, so nothing is imported before a scenario runs. Each asserts what
it sees; the tests beside this file start them and look at the server afterwards.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def repository_life(repo_id: str) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download

    api = HfApi()
    assert api.create_repo(repo_id).repo_id == repo_id
    assert api.create_repo(repo_id, exist_ok=True).repo_id == repo_id
    first = api.upload_file(path_or_fileobj=b"hello", path_in_repo="a.txt", repo_id=repo_id)
    again = api.upload_file(path_or_fileobj=b"hello", path_in_repo="a.txt", repo_id=repo_id)
    assert again.oid == first.oid
    api.create_commit(
        repo_id,
        [CommitOperationAdd("deep/b.txt", b"b" * 1000), CommitOperationCopy("a.txt", "copy.txt")],
        commit_message="add and copy",
        commit_description="two at once",
    )
    last = api.create_commit(repo_id, [CommitOperationDelete("a.txt")], commit_message="delete")
    assert api.list_repo_files(repo_id) == [".gitattributes", "copy.txt", "deep/b.txt"]
    assert not api.file_exists(repo_id, "a.txt")
    assert api.file_exists(repo_id, "deep/b.txt")
    assert Path(hf_hub_download(repo_id, "copy.txt")).read_bytes() == b"hello"
    assert [c.title for c in api.list_repo_commits(repo_id)][:2] == ["delete", "add and copy"]
    assert api.model_info(repo_id).sha == last.oid
    assert [e.path for e in api.list_repo_tree(repo_id)] == [".gitattributes", "copy.txt", "deep"]
    assert [e.path for e in api.get_paths_info(repo_id, ["deep/b.txt", "nothing"])] == ["deep/b.txt"]
    assert repo_id in [model.id for model in api.list_models(author="admin")]
    api.delete_repo(repo_id)
    assert not api.repo_exists(repo_id)


def branches_and_tags(repo_id: str) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    api.create_repo(repo_id, private=True)
    api.upload_file(path_or_fileobj=b"main", path_in_repo="a.txt", repo_id=repo_id)
    api.create_branch(repo_id, branch="feat/x")
    api.create_branch(repo_id, branch="feat/x", exist_ok=True)
    api.create_tag(repo_id, tag="v1.0", tag_message="first")
    api.upload_file(path_or_fileobj=b"branch", path_in_repo="a.txt", repo_id=repo_id, revision="feat/x")
    assert Path(hf_hub_download(repo_id, "a.txt", revision="feat/x")).read_bytes() == b"branch"
    assert Path(hf_hub_download(repo_id, "a.txt", revision="v1.0")).read_bytes() == b"main"
    sha = api.model_info(repo_id, revision="feat/x").sha
    assert sha is not None
    assert Path(hf_hub_download(repo_id, "a.txt", revision=sha)).read_bytes() == b"branch"
    found = api.list_repo_refs(repo_id)
    assert ([b.name for b in found.branches], [t.name for t in found.tags]) == (["feat/x", "main"], ["v1.0"])
    api.delete_branch(repo_id, branch="feat/x")
    api.delete_tag(repo_id, tag="v1.0")
    assert not api.revision_exists(repo_id, "feat/x")
    try:
        api.upload_file(path_or_fileobj=b"late", path_in_repo="a.txt", repo_id=repo_id, parent_commit="0" * 40)
    except HfHubHTTPError as error:
        refused_with = error.response.status_code
    else:
        raise AssertionError("a commit onto a parent that is not the head went in")
    assert refused_with == 412
    api.move_repo(repo_id, f"{repo_id}-moved")
    assert api.model_info(repo_id).id == f"{repo_id}-moved"
    assert Path(hf_hub_download(repo_id, "a.txt", force_download=True)).read_bytes() == b"main"


def folder_round_trip(repo_id: str) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, HfApi, snapshot_download

    api = HfApi()
    large = os.urandom(3 << 20)
    files = {
        "README.md": b"---\nlicense: apache-2.0\ntags: [test]\n---\n# A test\n",
        "config.json": b"{}\n",
        "empty.txt": b"",
        "small.bin": bytes(range(256)),
        "large.bin": large,
        "deep/same.bin": large,
        "long.txt": b"a line of text, again and again\n" * 60_000,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        api.create_repo(repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="all")
        before = api.model_info(repo_id).sha
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="again")
        assert api.model_info(repo_id).sha == before
        changed = large[: 1 << 20] + b"changed" + large[1 << 20 :]
        Path(folder, "large.bin").write_bytes(changed)
        files["large.bin"] = changed
        api.upload_folder(repo_id=repo_id, folder_path=folder, delete_patterns="small.bin", commit_message="changed")
    api.create_commit(
        repo_id,
        [CommitOperationCopy("large.bin", "copied.bin"), CommitOperationAdd("object.bin", large)],
        commit_message="copy",
    )
    files |= {"copied.bin": files["large.bin"], "object.bin": large}
    snapshot = Path(snapshot_download(repo_id))
    found = {str(p.relative_to(snapshot)): p.read_bytes() for p in snapshot.rglob("*") if p.is_file()}
    del found[".gitattributes"]
    assert {n: len(c) for n, c in found.items()} == {n: len(c) for n, c in files.items()}
    assert found == files
    siblings = {s.rfilename: s for s in api.model_info(repo_id, files_metadata=True).siblings or ()}
    assert siblings["large.bin"].lfs is not None
    assert siblings["config.json"].lfs is None


def errors_have_their_classes(repo_id: str) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        BadRequestError,
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api, anonymous = HfApi(), HfApi(token=False)
    api.create_repo(repo_id, private=True)

    def refused(kind: type[Exception], call: object, *arguments: object, **named: object) -> str:
        assert callable(call)
        try:
            call(*arguments, **named)
        except kind as error:
            return str(error)
        raise AssertionError(f"{call} was not refused with {kind.__name__}")

    refused(RepositoryNotFoundError, anonymous.model_info, repo_id)
    refused(RepositoryNotFoundError, api.model_info, "admin/no-such-repository")
    refused(RevisionNotFoundError, api.model_info, repo_id, revision="no-such-branch")
    refused(EntryNotFoundError, hf_hub_download, repo_id, "no-such-file")
    refused(RevisionNotFoundError, hf_hub_download, repo_id, "config.json", revision="no/such")
    text = refused(BadRequestError, api.create_repo, repo_id, repo_type="dataset")
    assert "holds models and patches only" in text
    text = refused(OSError, HfApi(token="ah_not-a-token-of-this-server").whoami)  # 0.36: requests' own HTTPError
    assert "401" in text or "Invalid" in text
    text = refused(HfHubHTTPError, api.create_repo, "somebody-else/x")
    assert "no right to the namespace" in text


def block_reads(repo_id: str) -> None:
    from huggingface_hub import HfApi, HfFileSystem

    content = os.urandom(1 << 20)
    api = HfApi()
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo_id)
    system = HfFileSystem()
    with system.open(f"{repo_id}/a.bin", "rb", block_size=1 << 16) as file:
        file.seek(500_000)
        assert file.read(1000) == content[500_000:501_000]
    assert system.ls(repo_id, detail=False) == [f"{repo_id}/.gitattributes", f"{repo_id}/a.bin"]
    assert system.cat_file(f"{repo_id}/a.bin", start=10, end=20) == content[10:20]


def push_large(repo_id: str, path: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    api.upload_file(path_or_fileobj=path, path_in_repo="large.bin", repo_id=repo_id)


def models_and_adapters(repo_id: str) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    model.push_to_hub(f"{repo_id}-base")
    base: Any = AutoModelForCausalLM.from_pretrained(f"{repo_id}-base")
    base.eval()
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.push_to_hub(f"{repo_id}-lora")
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = tuned(tokens).logits
        fresh: Any = AutoModelForCausalLM.from_pretrained(f"{repo_id}-base")
        fresh.eval()
        loaded: Any = PeftModel.from_pretrained(fresh, f"{repo_id}-lora")
        loaded.eval()
        torch.testing.assert_close(loaded(tokens).logits, expected)
        whole: Any = AutoPeftModelForCausalLM.from_pretrained(f"{repo_id}-lora")
        whole.eval()
        torch.testing.assert_close(whole(tokens).logits, expected)
        backbone: Any = AutoModel.from_pretrained(f"{repo_id}-base")
        backbone.eval()
        assert backbone(tokens).last_hidden_state.shape == (1, 8, 32)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
