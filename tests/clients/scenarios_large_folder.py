"""Folders sent by `upload_large_folder`, of huggingface_hub before 2.0, as in `scenarios.py`."""

import sys
from pathlib import Path
from typing import Any

from tests.clients.needs import needs


def send(repo_id: str, folder: str) -> None:
    """Send the folder with one worker, from where an earlier run of this ended."""
    needs("upload_large_folder")
    from huggingface_hub import HfApi

    api: Any = HfApi()
    api.upload_large_folder(repo_id=repo_id, folder_path=folder, repo_type="model", num_workers=1, print_report=False)


def compare(repo_id: str, folder: str) -> None:
    """What the hub holds is what lies in the folder."""
    from huggingface_hub import snapshot_download

    snapshot = Path(snapshot_download(repo_id))
    sent = {path.name: path.read_bytes() for path in Path(folder).glob("*.bin")}
    assert {path.name: path.read_bytes() for path in snapshot.glob("*.bin")} == sent


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
