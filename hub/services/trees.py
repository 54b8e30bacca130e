"""Folders of a commit: reading them as entries, writing them as git tree objects."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import Session, col, select

from adapterhub.hub.db.queries import chunks, insert_missing
from adapterhub.hub.db.tables import Commit, GitBlob, GitTreeEntry, Repository
from adapterhub.hub.errors import EntryNotFound
from adapterhub.hub.services.git_objects import FILE_MODE, FOLDER_MODE, pointer_text, tree_oid
from adapterhub.hub.services.names import is_storable


@dataclass(frozen=True)
class Entry:
    """One file or folder at a commit.

    oid: git's id (of the pointer for a large file). digest: "sha256:<hex>" of the file, "" for a folder, which has
    size 0. is_lfs: a large file, which git stores as a pointer.
    """

    path: str
    oid: str
    size_bytes: int = 0
    digest: str = ""
    is_lfs: bool = False
    is_folder: bool = False

    @property
    def pointer_bytes(self) -> int:
        """Length of the pointer of a large file."""
        return len(pointer_text(self.digest, self.size_bytes))


def files(session: Session, repo: Repository, commit: str) -> list[Entry]:
    """Every file at that commit, by path."""
    return [e for e in list_tree(session, repo, commit, recursive=True) if not e.is_folder]


def list_tree(
    session: Session, repo: Repository, commit: str, path: str = "", *, recursive: bool = False
) -> list[Entry]:
    """What lies in the folder `path` ("" for the root) at that commit, by path; recursive: in its folders too.

    Raises EntryNotFound where there is no such folder.
    """
    root = entry(session, repo, commit, path)
    if not root.is_folder:
        raise EntryNotFound(repo.full_name, path, commit)
    found: list[Entry] = []
    pending = [(path, root.oid)]
    while pending:
        level = _children(session, repo, pending)
        found += level
        pending = [(e.path, e.oid) for e in level if e.is_folder] if recursive else []
    return sorted(found, key=lambda e: e.path)


def entry(session: Session, repo: Repository, commit: str, path: str) -> Entry:
    """The file or folder `path` at that commit; "" is the root folder. Raises EntryNotFound."""
    row = session.get(Commit, (repo.id, commit))
    here = Entry("", row.tree_oid, is_folder=True) if row else None
    for name in path.split("/") if path else ():
        here = _child(session, repo, here, name) if here and here.is_folder and is_storable(name) else None
    if here is None:
        raise EntryNotFound(repo.full_name, path, commit)
    return here


def paths_info(session: Session, repo: Repository, commit: str, paths: Iterable[str]) -> list[Entry]:
    """The entries of those of `paths` that exist at that commit, in the order asked."""
    found = []
    for path in paths:
        try:
            found.append(entry(session, repo, commit, path.strip("/")))
        except EntryNotFound:
            continue
    return found


def stored_bytes(session: Session, repo: Repository) -> int:
    """Bytes of all files of all commits, each content once."""
    contents = select(GitBlob.digest, GitBlob.size_bytes).where(GitBlob.repository_id == repo.id).distinct().subquery()
    return session.scalar(select(func.coalesce(func.sum(contents.c.size_bytes), 0))) or 0


@dataclass(frozen=True)
class Trees:
    """The tree objects of one set of files. objects: (mode, name, oid) lines of each, by its id."""

    root: str
    objects: Mapping[str, Sequence[tuple[str, str, str]]]


def build(entries: Mapping[str, Entry]) -> Trees:
    """The tree objects of those files, recorded nowhere."""
    folders: dict[str, list[tuple[str, str, str]]] = {"": []}
    for path, item in entries.items():
        parent, _, name = path.rpartition("/")
        folders.setdefault(parent, []).append((FILE_MODE, name, item.oid))
        while parent:
            parent = parent.rpartition("/")[0]
            folders.setdefault(parent, [])
    objects: dict[str, list[tuple[str, str, str]]] = {}
    oid = ""
    for folder in sorted(folders, key=lambda f: f.count("/") + bool(f), reverse=True):  # deepest first, the root last
        oid = tree_oid(folders[folder])
        objects[oid] = folders[folder]
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent].append((FOLDER_MODE, name, oid))
    return Trees(oid, objects)


def write(session: Session, repo_id: str, objects: Mapping[str, Sequence[tuple[str, str, str]]]) -> None:
    """Record tree objects in the transaction."""
    rows = (
        {"repository_id": repo_id, "tree_oid": oid, "mode": mode, "name": name, "oid": child}
        for oid, lines in objects.items()
        for mode, name, child in lines
    )
    insert_missing(session, GitTreeEntry, rows)


def _child(session: Session, repo: Repository, folder: Entry, name: str) -> Entry | None:
    line = session.get(GitTreeEntry, (repo.id, folder.oid, name))
    if line is None:
        return None
    path = f"{folder.path}/{name}" if folder.path else name
    if line.mode == FOLDER_MODE:
        return Entry(path, line.oid, is_folder=True)
    return _file(path, session.get_one(GitBlob, (repo.id, line.oid)))


def _children(session: Session, repo: Repository, folders: list[tuple[str, str]]) -> list[Entry]:
    """Entries directly inside those folders. folders: (path, tree id); one tree may stand at several paths."""
    lines: dict[str, list[tuple[GitTreeEntry, GitBlob | None]]] = {}
    for oids in chunks({oid for _, oid in folders}):
        query = (
            select(GitTreeEntry, GitBlob)
            .join(
                GitBlob,
                (col(GitBlob.repository_id) == col(GitTreeEntry.repository_id))
                & (col(GitBlob.oid) == col(GitTreeEntry.oid)),
                isouter=True,
            )
            .where(GitTreeEntry.repository_id == repo.id, col(GitTreeEntry.tree_oid).in_(oids))
        )
        for line, blob in session.exec(query):
            lines.setdefault(line.tree_oid, []).append((line, blob))
    found = []
    for folder, oid in folders:
        for line, content in lines.get(oid, []):
            path = f"{folder}/{line.name}" if folder else line.name
            found.append(_file(path, content) if content else Entry(path, line.oid, is_folder=True))
    return found


def _file(path: str, blob: GitBlob) -> Entry:
    return Entry(path, blob.oid, blob.size_bytes, blob.digest, blob.is_lfs)
