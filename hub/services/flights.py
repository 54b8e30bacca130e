"""One at a time for each key, among all threads and processes that share a data folder.

A turn is a locked file: the system gives it back when its holder dies, and a database need not be asked.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapterhub.merging.errors import Cancelled

FOLDER = "locks"
POLL_S = 0.05
"""Seconds between two looks whether the turn is free."""


@contextmanager
def turn(data: Path, *key: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """The time in which no other is inside with that key. data: the data folder.

    Raises Cancelled when `cancelled()` holds while another is inside.
    """
    folder = data / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / hashlib.sha256("\0".join(key).encode()).hexdigest()
    while (file := _taken(path)) is None:
        if cancelled():
            raise Cancelled("asked to stop while another did the same work")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _taken(path: Path) -> BinaryIO | None:
    """The file, locked; None while another holds it, or when it was removed in the moment before."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None
