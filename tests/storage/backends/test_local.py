"""What only files have: permissions, links, other processes, and death in the middle."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.storage.backends.local import LocalStore
from adapterhub.storage.blobs import digest_of
from adapterhub.storage.errors import StoreUnavailable

CONTENT = b"a blob of the tests"
HEX = hashlib.sha256(CONTENT).hexdigest()
FILE = Path("objects/sha256") / HEX[:2] / HEX[2:4] / HEX


def put(store: LocalStore, content: bytes = CONTENT) -> Path:
    with store.writer() as writer:
        writer.write(content)
        return store.path(writer.commit().digest)


def test_the_name_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    assert put(LocalStore(tmp_path)) == tmp_path / FILE
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_nobody_else_may_read_a_blob_and_nobody_write_it(tmp_path: Path) -> None:
    path = put(LocalStore(tmp_path / "blobs"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    for folder in (path.parent, tmp_path / "blobs", tmp_path / "blobs" / "tmp"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_stays_in_tmp_after_commit_refusal_and_abort(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store)
    put(store)
    with store.writer() as writer:
        writer.write(b"abandoned")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_link_in_place_of_a_blob_is_not_followed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    secret = tmp_path / "secret"
    secret.write_bytes(b"not a blob")
    target = tmp_path / "blobs" / FILE
    target.parent.mkdir(parents=True)
    target.symlink_to(secret)
    with pytest.raises(StoreUnavailable, match="symbolic links"):
        store.read(digest_of(CONTENT))


def test_a_damaged_file_is_never_overwritten(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    target = put(store)
    target.chmod(0o600)
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(StoreUnavailable, match=f"damaged: {len(CONTENT) - 1} bytes on disk"):
        put(store)
    assert target.read_bytes() == CONTENT[:-1]


def test_a_reader_that_began_before_a_deletion_finishes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store)
    pieces = store.read(digest_of(CONTENT))
    store.delete(digest_of(CONTENT))
    assert b"".join(pieces) == CONTENT


def test_what_a_person_put_beside_the_blobs_is_not_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store)
    (tmp_path / "objects/sha256/README").write_text("please keep")
    (tmp_path / "objects/sha256/ff").mkdir(exist_ok=True)
    (tmp_path / FILE.parent / "notes.txt").write_text("mine")
    assert [found.digest for found in store.list()] == [digest_of(CONTENT)]


def test_without_hard_links_a_blob_is_renamed_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = LocalStore(tmp_path)
    first = put(store).stat()
    assert put(store).stat().st_ino == first.st_ino
    assert list((tmp_path / "tmp").iterdir()) == []


def test_opening_sweeps_what_dead_writers_left_a_day_ago(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    LocalStore(tmp_path)
    assert [file.name for file in (tmp_path / "tmp").iterdir()] == ["young"]
    assert list(store.list()) == []


KILLED = """
import sys
from pathlib import Path
from adapterhub.storage.backends.local import LocalStore

with LocalStore(Path(sys.argv[1])).writer() as writer:
    writer.write(b"x" * 5_000_000)
    print("half way", flush=True)
    sys.stdin.read()
"""


def test_a_writer_that_is_killed_leaves_nothing_visible(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half way\n"
        child.send_signal(signal.SIGKILL)
    store = LocalStore(tmp_path)
    assert list(store.list()) == []
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    with store.writer() as writer:
        writer.write(b"x" * 5_000_000)
        writer.commit(digest_of(b"x" * 5_000_000))


BUSY = """
import sys
from itertools import count
from pathlib import Path
from adapterhub.storage.backends.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
for n in count():
    with store.writer() as writer:
        writer.write(str(n).encode() * 1000)
        print(writer.commit().digest, flush=True)
"""


def test_every_acknowledged_blob_survives_a_kill_whole(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for rounds in (3, 17, 40):
        with subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            acknowledged += [child.stdout.readline().strip() for _ in range(rounds)]
            child.send_signal(signal.SIGKILL)
    store = LocalStore(tmp_path)
    for digest in acknowledged:
        assert digest_of(b"".join(store.read(digest))) == digest
    for found in store.list():
        assert digest_of(b"".join(store.read(found.digest))) == found.digest


FULL = """
import resource, sys
from pathlib import Path
from adapterhub.storage.backends.local import LocalStore
from adapterhub.storage.errors import StoreUnavailable

store = LocalStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with store.writer() as writer:
        for _ in range(3):
            writer.write(bytes(1 << 20))
        writer.commit()
except StoreUnavailable as error:
    print(error, list(store.list()), list((Path(sys.argv[1]) / "tmp").iterdir()))
"""


def test_a_disk_that_is_full_is_said_to_be_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/tmp: cannot write: File too large [] []\n"
