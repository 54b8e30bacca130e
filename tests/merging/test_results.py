import errno
import hashlib
from pathlib import Path

import pytest

from adapterhub.merging.checkpoint import LocalFolder
from adapterhub.merging.errors import PlanTooLarge
from adapterhub.merging.results import ResultFolder


def test_a_published_folder_holds_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/copied.bin").write_bytes(b"y" * 10)
    with ResultFolder(tmp_path / "out") as folder:
        folder.write("sub/a.txt", b"hello")
        folder.copy(LocalFolder(tmp_path / "from"), "copied.bin", "b.bin")
        assert not (tmp_path / "out").exists()
        files = folder.publish()
    assert [file.name for file in files] == ["b.bin", "sub/a.txt"]
    for file in files:
        content = (tmp_path / "out" / file.name).read_bytes()
        assert (file.size_bytes, file.digest) == (len(content), "sha256:" + hashlib.sha256(content).hexdigest())


def test_a_folder_that_was_not_published_leaves_nothing(tmp_path: Path) -> None:
    with ResultFolder(tmp_path / "out") as folder:
        folder.write("a", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_the_disk_cannot_take_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PlanTooLarge, match=r"takes 1000000000000000 bytes and its disk has \d+ free"):
        ResultFolder(tmp_path / "deep/out", 10**15).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_says_what_was_missing(tmp_path: Path) -> None:
    def fill(folder: ResultFolder) -> None:
        folder.write("a", b"1")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PlanTooLarge, match="takes 123 bytes") as raised, ResultFolder(tmp_path / "out", 123) as folder:
        fill(folder)
    assert isinstance(raised.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_there_already(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with ResultFolder(tmp_path / "out") as folder:
        folder.write("a", b"1")
        folder.publish()
    assert (tmp_path / "out/a").read_bytes() == b"1"


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        ResultFolder(tmp_path)
