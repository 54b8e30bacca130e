"""What users do with files, listings and metadata, each function run in a process of its own, as in `scenarios.py`."""

import os
import sys
import tempfile
from pathlib import Path


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


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
