from pathlib import Path

import pytest

from adapterhub.hub.serving.cores import threads_of, usable_cores


def cgroup(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_a_quota_of_either_version_counts(tmp_path: Path) -> None:
    second = cgroup(tmp_path / "", cpu_max="50000 100000\n")
    assert usable_cores(second) == 0.5
    assert threads_of(0, second) == 1


def test_the_first_version_has_two_files_and_minus_one_for_none(tmp_path: Path) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("25000\n")
    assert usable_cores(tmp_path) == 0.25
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) >= 1


@pytest.mark.parametrize("text", ["max 100000\n", ""])
def test_without_a_quota_the_affinity_decides(tmp_path: Path, text: str) -> None:
    assert usable_cores(cgroup(tmp_path, cpu_max=text)) >= 1


def test_a_configured_number_is_taken_as_it_is(tmp_path: Path) -> None:
    assert threads_of(3, tmp_path) == 3
