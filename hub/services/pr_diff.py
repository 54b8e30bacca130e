"""What a pull request changes, as a diff that people read: text line by line, large files by their names alone."""

import difflib
from collections.abc import Iterator

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.services import blobs, trees
from adapterhub.hub.services.access import Caller, may_read_content
from adapterhub.hub.services.discussions import Details
from adapterhub.hub.services.trees import Entry

FILES = 300
"""Most files that are shown."""
FILE_BYTES = 256 << 10
"""Largest text that is compared line by line."""
DIFF_CHARACTERS = 1 << 20


def diff(session: Session, hub: Hub, caller: Caller, found: Details) -> str:
    """The diff from the commit that the pull request began from to where it stands; cut where it grows too long.

    Texts of a gated repository are left out for those who may not read its files.
    """
    repo = found.shown.repo
    before = trees.by_path(session, repo, str(found.shown.row.base_oid))
    after = trees.by_path(session, repo, str(found.head))
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    with_text = may_read_content(session, caller, repo)
    text = "".join(_of_file(hub, before.get(path), after.get(path), path, with_text) for path in changed[:FILES])
    if len(changed) > FILES or len(text) > DIFF_CHARACTERS:
        text = text[:DIFF_CHARACTERS] + f"\n... {len(changed)} files changed; not all of it is shown\n"
    return text


def _of_file(hub: Hub, before: Entry | None, after: Entry | None, path: str, with_text: bool) -> str:
    old = f"a/{path}" if before else "/dev/null"
    new = f"b/{path}" if after else "/dev/null"
    head = f"diff --git a/{path} b/{path}\n"
    sides = [_lines(hub, entry) if with_text else None for entry in (before, after)]
    if sides[0] is None or sides[1] is None:
        return f"{head}Binary files {old} and {new} differ\n"
    return head + "".join(_unified(sides[0], sides[1], old, new))


def _unified(before: list[str], after: list[str], old: str, new: str) -> Iterator[str]:
    for line in difflib.unified_diff(before, after, old, new):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(hub: Hub, entry: Entry | None) -> list[str] | None:
    """The lines of a text, none of a file that is not there; None for what is no text, or large."""
    if entry is None:
        return []
    if entry.is_lfs or entry.size_bytes > FILE_BYTES:
        return None
    try:
        return b"".join(blobs.open_file(hub, entry)).decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
