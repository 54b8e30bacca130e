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


def by_path(session: Session, repo: Repository, commit: str) -> dict[str, Entry]:
    """Every file at that commit."""
    return {entry.path: entry for entry in files(session, repo, commit)}


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


def objects_at(session: Session, repo: Repository, roots: Sequence[str], paths: Iterable[str]) -> list[dict[str, str]]:
    """For each of the trees `roots`, the git object at each of `paths` and of the folders on the way, by path.

    What is not there is left out. One query a level of folders and 500 names, however many the paths are.
    """
    found: list[dict[str, str]] = [{"": root} for root in roots]
    levels: dict[int, set[str]] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(len(parts)):
            levels.setdefault(depth, set()).add("/".join(parts[: depth + 1]))
    for depth in sorted(levels):
        split = [(path, *path.rpartition("/")[::2]) for path in levels[depth]]
        wanted = {at[folder] for at in found for _, folder, _ in split if folder in at}
        oids = _oids(session, repo, wanted, {name for _, _, name in split})
        for at in found:
            for path, folder, name in split:
                if folder in at and (at[folder], name) in oids:
                    at[path] = oids[at[folder], name]
    return found


def blobs_at(session: Session, repo: Repository, commit: str, paths: Iterable[str]) -> list[Entry]:
    """The files, and no folders, among `paths` at that commit; by as few queries as `objects_at`."""
    row = session.get_one(Commit, (repo.id, commit))
    wanted = set(paths)
    [objects] = objects_at(session, repo, [row.tree_oid], wanted)
    known: dict[str, GitBlob] = {}
    for some in chunks({objects[path] for path in wanted if path in objects}):
        rows = session.exec(select(GitBlob).where(GitBlob.repository_id == repo.id, col(GitBlob.oid).in_(some)))
        known |= {blob.oid: blob for blob in rows}
    return [_file(path, known[objects[path]]) for path in sorted(wanted) if objects.get(path) in known]


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


def _oids(session: Session, repo: Repository, trees: Iterable[str], names: Iterable[str]) -> dict[tuple[str, str], str]:
    """The object of each of `names` in each of `trees`, by tree and name."""
    found: dict[tuple[str, str], str] = {}
    columns = col(GitTreeEntry.tree_oid), col(GitTreeEntry.name), col(GitTreeEntry.oid)
    wanted = [list(some) for some in chunks(sorted(filter(is_storable, names)))]
    for some in chunks(sorted(trees)):
        for part in wanted:
            here = (
                GitTreeEntry.repository_id == repo.id,
                col(GitTreeEntry.tree_oid).in_(some),
                col(GitTreeEntry.name).in_(part),
            )
            found |= {(tree, name): oid for tree, name, oid in session.exec(select(*columns).where(*here))}
    return found


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
