"""What a pull request changes, as a diff that people read: text line by line, large files by their names alone.

Comparing two texts may cost the product of their lengths, and anybody may ask: files, lines and the whole are bounded
before anything is compared.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.services import blobs, trees
from adapterhub.hub.services.access import Caller, may_read_content
from adapterhub.hub.services.discussions import Details
from adapterhub.hub.services.trees import Entry

FILES = 300
"""Most files that are shown."""
FILE_BYTES = 32 << 10
"""Largest text that is compared."""
FILE_LINES = 1000
"""Most lines of one text that are compared."""
ALL_LINES = 10_000
"""Most lines that are compared in all; later files are shown by their names."""


@dataclass(frozen=True)
class Change:
    """One path before and after; None where there is no file. with_text: whether the caller may read it."""

    path: str
    before: Entry | None
    after: Entry | None
    with_text: bool


def changes(session: Session, caller: Caller, found: Details) -> list[Change]:
    """What differs between the commit that the pull request began from and where it stands, by path.

    Texts of a gated repository are left out for those who may not read its files.
    """
    repo = found.shown.repo
    before = trees.by_path(session, repo, str(found.shown.row.base_oid))
    after = trees.by_path(session, repo, str(found.head))
    with_text = may_read_content(session, caller, repo)
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return [Change(path, before.get(path), after.get(path), with_text) for path in paths]


def text_of(hub: Hub, changed: Sequence[Change]) -> str:
    """The diff; needs no database, and is done outside of its sessions."""
    left, parts = ALL_LINES, []
    for change in changed[:FILES]:
        before, after = (_lines(hub, entry, change, left) for entry in (change.before, change.after))
        left -= len(before or ()) + len(after or ())
        parts.append(_of_file(change, before, after))
    if len(changed) > FILES:
        parts.append(f"... {len(changed)} files changed; not all of them are shown\n")
    return "".join(parts)


def _of_file(change: Change, before: list[str] | None, after: list[str] | None) -> str:
    old = f"a/{change.path}" if change.before else "/dev/null"
    new = f"b/{change.path}" if change.after else "/dev/null"
    head = f"diff --git a/{change.path} b/{change.path}\n"
    if before is None or after is None:
        return f"{head}Binary files {old} and {new} differ\n"
    return head + "".join(_unified(before, after, old, new))


def _unified(before: list[str], after: list[str], old: str, new: str) -> Iterator[str]:
    for line in difflib.unified_diff(before, after, old, new):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(hub: Hub, entry: Entry | None, change: Change, left: int) -> list[str] | None:
    """The lines of a text, none of a file that is not there; None for what is no text, or too much of it."""
    if entry is None:
        return []
    if entry.is_lfs or entry.size_bytes > FILE_BYTES or not change.with_text:
        return None
    try:
        lines = b"".join(blobs.open_file(hub, entry)).decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
    return lines if len(lines) <= min(FILE_LINES, left) else None
