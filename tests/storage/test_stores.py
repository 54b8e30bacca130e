"""Finding a back end by the URL's scheme."""

import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.storage import backends
from adapterhub.storage.blobs import check_digest, digest_of
from adapterhub.storage.errors import InvalidStoreUrl, StoreUnavailable
from adapterhub.storage.stores import known_backends, open_store


def test_every_file_of_backends_answers_to_its_scheme() -> None:
    files = [path for path in Path(backends.__path__[0]).glob("*.py") if path.stem != "__init__"]
    assert len(known_backends()) == len(files)
    for scheme, backend in known_backends().items():
        assert backend.example.startswith(f"{scheme}://")


@pytest.mark.parametrize(
    "url", ["", "file", "ftp://host/x", "file://relative/folder", "file:/one/slash", "/data/blobs"]
)
def test_a_url_without_a_back_end_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(InvalidStoreUrl, match="file:///"):
        open_store(url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreUnavailable, match="taken"):
        open_store(f"file://{tmp_path}/taken/blobs")


def test_the_path_of_a_file_url_is_taken_as_written(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/50%25 of #1?")
    assert (tmp_path / "50%25 of #1?").is_dir()
    assert list(store.list()) == []


def test_opening_a_local_store_loads_no_s3_library() -> None:
    code = (
        "import sys; from adapterhub.storage.stores import known_backends as k; k(); assert 'boto3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_digest_is_the_sha256_of_the_bytes() -> None:
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert check_digest(digest_of(b"")) == digest_of(b"")
