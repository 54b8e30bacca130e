"""What users do with repositories that their hub brings from another one, each function run in a process of its own."""

import json
import os
import sys
import tempfile
from pathlib import Path


def publish(repo_id: str) -> None:
    """On the other hub: a base model, a branch and a tag."""
    from huggingface_hub import HfApi

    from tests.hub.serving import models

    api = HfApi()
    api.create_repo(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        api.upload_folder(repo_id=repo_id, folder_path=models.llama(Path(folder)))
    api.upload_file(path_or_fileobj=b"deep", path_in_repo="deep/er/file.txt", repo_id=repo_id)
    api.create_tag(repo_id, tag="v1")
    api.upload_file(path_or_fileobj=b"later", path_in_repo="later.txt", repo_id=repo_id)


def shown(repo_id: str) -> None:
    """What any client sees of the repository, to be compared between hubs."""
    from huggingface_hub import HfApi

    api = HfApi()
    seen = []
    for revision in ("main", "v1"):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        assert info.siblings
        files = [(s.rfilename, s.size, s.blob_id, s.lfs.sha256 if s.lfs else None) for s in info.siblings]
        tree = [(e.path, getattr(e, "blob_id", None)) for e in api.list_repo_tree(repo_id, revision=revision)]
        seen.append([info.id, info.sha, info.tags, files, tree])
    sys.stdout.write(json.dumps(seen))


def read(repo_id: str, expected: str) -> None:
    """Every way to the files; expected: the commit that main stands at."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    folder = Path(snapshot_download(repo_id))
    assert folder.name == expected
    assert (folder / "later.txt").read_bytes() == b"later"
    assert (folder / "model.safetensors").stat().st_size > 1000
    assert Path(hf_hub_download(repo_id, "deep/er/file.txt", revision="v1")).read_bytes() == b"deep"
    assert not HfApi().file_exists(repo_id, "later.txt", revision="v1")


def refuse_changes(repo_id: str) -> None:
    import pytest
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match="read-only here") as refused:
        HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="mine.txt", repo_id=repo_id)
    assert refused.value.response.status_code == 403


def missing(repo_id: str) -> None:
    import pytest
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(repo_id)


def unreachable(repo_id: str, host: str) -> None:
    import pytest
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match=host) as failed:
        HfApi().model_info(repo_id)
    assert failed.value.response.status_code == 503
    assert "Retry-After" in failed.value.response.headers


def push_adapter(base_id: str, lora_id: str) -> None:
    """An adapter of this hub on a base that only the other one has."""
    from huggingface_hub import HfApi
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_id)
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert tuned.peft_config["default"].base_model_name_or_path == base_id
    api = HfApi()
    api.create_repo(lora_id)
    with tempfile.TemporaryDirectory() as folder:
        tuned.save_pretrained(folder)
        api.upload_folder(repo_id=lora_id, folder_path=folder)


def load_adapter(lora_id: str) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(lora_id)
    with torch.no_grad():
        assert model(torch.arange(8)[None]).logits.isfinite().all()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    globals()[sys.argv[1]](*sys.argv[2:])
