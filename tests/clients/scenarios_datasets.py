"""What users of the datasets library see: this hub holds none. Each function is run in a process of its own."""

import sys
from collections.abc import Callable


def datasets_are_refused(repo_id: str) -> None:
    from datasets import Dataset, load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import BadRequestError, RepositoryNotFoundError

    api = HfApi()
    rows = Dataset.from_dict({"text": ["a", "b"]})

    def refused(kind: type[Exception], deed: Callable[[], object]) -> str:
        try:
            found = deed()
        except kind as error:
            return str(error)
        raise AssertionError(f"not refused: {found}")

    asked: dict[str, object] = {"repo_id": repo_id, "repo_type": "dataset"}
    reads: list[Callable[[], object]] = [
        lambda: api.dataset_info(repo_id),
        lambda: hf_hub_download(repo_id, "a.csv", repo_type="dataset"),
        lambda: snapshot_download(repo_id, repo_type="dataset"),
        lambda: api.list_repo_files(repo_id, repo_type="dataset"),
    ]
    writes: list[Callable[[], object]] = [
        lambda: api.create_repo(repo_id, repo_type="dataset"),
        lambda: api.create_repo(repo_id, repo_type="dataset", exist_ok=True),
        lambda: rows.push_to_hub(repo_id),
        lambda: api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=repo_id, repo_type="dataset"),
        lambda: list(api.list_datasets()),
    ]
    for deed in reads:
        assert "datasets are not kept here; this hub holds models" in refused(RepositoryNotFoundError, deed)
    for deed in writes:
        assert "datasets are not kept here; this hub holds models" in refused(BadRequestError, deed)
    assert "spaces are not kept here" in refused(BadRequestError, lambda: list(api.list_spaces()))
    assert not api.repo_exists(**asked)  # type: ignore[arg-type]
    assert not api.file_exists(filename="a", **asked)  # type: ignore[arg-type]
    assert repo_id in refused(DatasetNotFoundError, lambda: load_dataset(repo_id))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
