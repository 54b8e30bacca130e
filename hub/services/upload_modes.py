"""How files that are about to be committed should travel: inside the commit, beforehand as large ones, or not at all.

In this order: what is above the limit of a commit is large; then the repository's .gitattributes decide; then text is
regular and everything else large.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.services import blobs, trees
from adapterhub.hub.services.git_patterns import Attributes, Ignored
from adapterhub.hub.services.trees import Entry

ATTRIBUTES = ".gitattributes"
IGNORED = ".gitignore"
READ_BYTES = 64 * 1024
"""How much of either file is read; what lies beyond is not looked at."""

ATTRIBUTE_FILES = 100
"""Most .gitattributes that count, those nearest to the root; a hostile repository may hold thousands."""


@dataclass(frozen=True)
class Wanted:
    """A file that is about to be committed. sample: its first bytes."""

    path: str
    size_bytes: int
    sample: bytes


@dataclass(frozen=True)
class Mode:
    """How one file should travel. known_oid: the present content's name as the client computes it for that mode."""

    path: str
    is_large: bool
    is_ignored: bool
    known_oid: str | None


def modes(
    session: Session, hub: Hub, repo: Repository, head: str, files: Sequence[Wanted], git_ignore: str | None = None
) -> list[Mode]:
    """How each of the files should travel to the branch at `head`. git_ignore: None for the repository's own."""
    present = {e.path: e for e in trees.blobs_at(session, repo, head, [file.path for file in files])}
    attributes = attributes_of(hub, trees.blobs_at(session, repo, head, _attribute_paths(files)))
    if git_ignore is None:
        git_ignore = "".join(_text(hub, entry) for entry in trees.blobs_at(session, repo, head, [IGNORED]))
    ignored = Ignored(git_ignore)
    found = []
    for file in files:
        is_large = _is_large(file, attributes, hub.settings.regular_max_bytes)
        known = _known_oid(present.get(file.path), is_large=is_large)
        found.append(Mode(file.path, is_large, file.path in ignored, known))
    return found


def attributes_of(hub: Hub, entries: Iterable[Entry]) -> Attributes:
    """What the .gitattributes among those files say."""
    named = [entry for entry in entries if entry.path.rpartition("/")[2] == ATTRIBUTES]
    named.sort(key=lambda entry: (entry.path.count("/"), entry.path))
    return Attributes({entry.path: _text(hub, entry) for entry in named[:ATTRIBUTE_FILES]})


def _is_large(file: Wanted, attributes: Attributes, regular_max_bytes: int) -> bool:
    if file.size_bytes > regular_max_bytes:
        return True
    declared = attributes.is_large(file.path)
    return declared if declared is not None else not _is_text(file.sample)


def _is_text(sample: bytes) -> bool:
    """Whether the sampled bytes are UTF-8 without NUL; a character cut at the sample's end is no fault."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and b"\0" not in sample
    return b"\0" not in sample


def _known_oid(entry: Entry | None, *, is_large: bool) -> str | None:
    """What the client would compute of the present content, so that it leaves out a file that is equal."""
    if entry is None:
        return None
    if is_large:
        return entry.digest.removeprefix("sha256:")
    return None if entry.is_lfs else entry.oid


def _attribute_paths(files: Iterable[Wanted]) -> list[str]:
    """Where a .gitattributes may lie that means one of the files: at the root and in every folder on the way."""
    folders = {""}
    for file in files:
        folder = file.path.rpartition("/")[0]
        while folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return [f"{folder}/{ATTRIBUTES}" if folder else ATTRIBUTES for folder in sorted(folders)]


def _text(hub: Hub, entry: Entry) -> str:
    """The file's text, as far as it is read."""
    return b"".join(blobs.open_file(hub, entry, 0, READ_BYTES)).decode(errors="replace")
