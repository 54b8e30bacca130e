"""Writes down each host that a client looks up: python runs this first where the folder is on its path."""

import os
import sys
from pathlib import Path
from typing import Any


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "", "127.0.0.1", "localhost"):
        with Path(os.environ["AHTEST_HOSTS"]).open("a") as file:
            file.write(f"{arguments[0]}\n")


if "AHTEST_HOSTS" in os.environ:
    sys.addaudithook(_note)
if os.environ.get("AHTEST_METHODS"):
    import hfapi_methods  # type: ignore[import-not-found]  # lies beside this file, which python runs alone

    sys.meta_path.insert(0, hfapi_methods.Finder())
