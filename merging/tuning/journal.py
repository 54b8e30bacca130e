"""The journal of a search: one JSON line that says what is searched, then one a trial.

Each trial is on disk before the next begins. A search that was killed goes on from its journal; a line that was half
written then is written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.tuning.search import Trial

FORMAT = "adapterhub.tuning"


class Journal:
    """The file of one search. header: everything that its course depends on, JSON values."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Opens the journal, or begins it. Raises InvalidParameter for a file that is the journal of another search."""
        self._path = path
        first = json.dumps({"format": FORMAT, **header}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole and whole[0] != first + "\n":
            raise InvalidParameter(
                f"{path}: is the journal of another search, or no journal; name another file, or remove this one"
            )
        self.done = [Trial.from_json(json.loads(line)) for line in whole[1:]]
        kept = "".join(whole) or first + "\n"
        if kept != "".join(lines):
            path.write_text(kept, encoding="utf-8")

    def record(self, trial: Trial) -> None:
        """Add a trial; it is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial.as_json(), sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
