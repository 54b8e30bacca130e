"""Items of a source brought into repositories of the server: every ref with its commits, each commit once.

What is here already is read from the repository itself: each imported commit ends in a trailer that names its source.
A run that was killed goes on from there, and a second run brings only what came since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from adapterhub.cli.client import Client
from adapterhub.cli.errors import CliError
from adapterhub.cli.source import (
    CommitFolder,
    Item,
    Skipped,
    Source,
    SourceCommit,
    SourceFailed,
    SourceFile,
    SourceRef,
    file_names,
)
from adapterhub.cli.target import SAMPLE_BYTES, CommitSeen, Content, Draft, Names, Target
from adapterhub.merging import patches
from adapterhub.merging.errors import MergingError

TRAILER = "Imported-From: "
AUTHOR, DATE = "Imported-Author: ", "Imported-Date: "
ATTRIBUTES = ".gitattributes"
"""The file of a repository's first commit; it stays where a source has none, as git-lfs goes by it."""

DEFAULT_BRANCH = "main"
"""The one branch that cannot be removed."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
WHOLE_BYTES = 1 << 20
"""Largest file that is kept in memory between hashing and sending."""

READERS = 8
BATCH_FILES = 64
"""Files that are asked about at once: as many small ones are in memory together."""
TITLE_CHARACTERS, BODY_CHARACTERS = 1000, 60_000
"""How much of a message is kept: the server takes 64 Ki characters in all."""

Seen = Callable[[str, int], None]
"""Told of each piece that was dealt with: the file's path, and bytes."""


@dataclass
class Outcome:
    """What became of one item. state: imported, unchanged, planned, skipped or failed."""

    source: str
    repo: str = ""
    kind: str = ""
    state: str = "planned"
    branches: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    commits: int = 0
    sent_bytes: int = 0
    kept_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def plan(source: Source, item: Item, outcome: Outcome) -> None:
    """Say what bringing the item would do; nothing is written, and of files only what recognises them is read."""
    refs = _refs(source, item)
    outcome.commits = len({commit.key for ref in refs for commit in ref.commits})
    for ref in refs:
        (outcome.tags if ref.is_tag else outcome.branches).append(ref.name)
    look(source, item, refs[0].commits[-1], outcome)


def look(source: Source, item: Item, commit: SourceCommit, outcome: Outcome) -> None:
    """Say what the files of a commit are, by names, configurations and headers, and what to beware of in them."""
    files = source.files(item, commit)
    folder = CommitFolder(source, item, commit, {file.path: file for file in files})
    try:
        found = patches.inspect(folder)
    except MergingError as error:
        found = []
        outcome.warnings.append(str(error))
    at_root = [facts.kind for facts in found if not facts.path]
    outcome.kind = at_root[0] if at_root else "patches" if found else "unknown"
    outcome.warnings += [problem for facts in found for problem in facts.problems]
    pickled = [file.path for file in files if file.path.endswith(PICKLES)]
    if pickled:
        shown = ", ".join(pickled[:5]) + (f" and {len(pickled) - 5} more" if len(pickled) > 5 else "")
        outcome.warnings.append(f"{shown}: pickles run code when they are loaded; they are kept as they are, unopened")


def bring(client: Client, source: Source, item: Item, outcome: Outcome, seen: Seen) -> None:
    """Bring the item into the repository that `outcome` names, and say there what was done.

    Raises CliError where that broke off; what arrived until then stays, and the next run goes on from there.
    """
    refs = _refs(source, item)
    look(source, item, refs[0].commits[-1], outcome)
    with client.http() as http:
        _Intake(Target(client, http, outcome.repo), source, item, outcome, seen).run(refs)


class _Intake:
    """One item on its way. known: the server's commits by the source's names for them, on any branch."""

    def __init__(self, target: Target, source: Source, item: Item, outcome: Outcome, seen: Seen) -> None:
        self.target, self.source, self.item, self.outcome, self.seen = target, source, item, outcome, seen
        self.known: dict[str, str] = {}
        self.root = ""

    def run(self, refs: Sequence[SourceRef]) -> None:
        if not self.target.exists():
            self.target.create(is_private=self.item.is_private)
        self.outcome.repo = self.target.repo_id
        branches, tags = self.target.refs()
        histories = {name: self.target.history(name) for name in branches}
        if all(len(history) == 1 for history in histories.values()):
            # before anything that is to be hidden arrives, also after a run that was killed right here
            self.target.close(is_private=self.item.is_private, gated=self.item.gated)
        for history in histories.values():
            self.root = history[-1].oid
            self.known = self._keys(history) | self.known
        for ref in refs:
            if ref.is_tag:
                self._tag(ref, tags.get(ref.name), histories)
            else:
                self._branch(ref.name, ref.commits, histories.get(ref.name))
                self.outcome.branches.append(ref.name)
        if self.outcome.state == "planned":
            self.outcome.state = "imported" if self.outcome.commits else "unchanged"

    def _keys(self, history: Sequence[CommitSeen]) -> dict[str, str]:
        """The server's commits by the source's names, as their trailers tell."""
        found = ((_trailer(one.message, self.item.origin), one.oid) for one in history)
        return {key: oid for key, oid in found if key}

    def _branch(self, name: str, commits: Sequence[SourceCommit], history: list[CommitSeen] | None) -> None:
        """Bring a branch up to its last commit; known afterwards holds each of them."""
        if history is not None and commits[-1].key in self.known and name != DEFAULT_BRANCH:
            history = self._moved(name, self.known[commits[-1].key], history)
        here = self.known if history is None else self._keys(history)
        done = max((at for at, commit in enumerate(commits) if commit.key in here), default=-1)
        start = here[commits[done].key] if done >= 0 else self.root
        if history is None:
            self.target.create_branch(name, start)
            self.outcome.state = "imported"
        head = start if history is None else history[0].oid
        left = commits[done + 1 :]
        if left and history is not None and not self._is_ours(history[0]):
            raise CliError(f"{self.target.repo_id}: {name} has commits of its own; import into another namespace")
        at = self.root
        for commit in commits[: done + 1]:
            at = self.known[commit.key] = here.get(commit.key, at)
        before = self._present(commits[done] if done >= 0 and head == start else None, head) if left else {}
        for commit in left:
            head, before = self._commit(name, commit, head, before)
            self.known[commit.key] = head

    def _moved(self, name: str, target: str, history: list[CommitSeen]) -> list[CommitSeen] | None:
        """The branch's history; None once it was removed to be made again where its source has it.

        The commits that it leaves stay reachable by their ids.
        """
        if history[0].oid == target or not self._is_ours(history[0]):
            return history
        self.target.delete_branch(name)
        return None

    def _is_ours(self, head: CommitSeen) -> bool:
        """Whether a branch with that head holds nothing that was not imported from here."""
        return head.oid == self.root or _trailer(head.message, self.item.origin) is not None

    def _tag(self, ref: SourceRef, present: str | None, histories: Mapping[str, list[CommitSeen]]) -> None:
        wanted = ref.commits[-1].key
        self.outcome.tags.append(ref.name)
        if present is not None:
            if self.known.get(wanted) != present and wanted not in self._keys(self.target.history(present)[:1]):
                self.outcome.warnings.append(f"tag {ref.name}: moved at its source; the one here stays where it is")
            return
        passing = None
        if wanted not in self.known:
            # no branch leads there: it gets one for as long as its commits take to arrive
            passing = f"imported/{ref.name}"
            self._branch(passing, ref.commits, histories.get(passing))
        self.target.create_tag(ref.name, self.known[wanted])
        if passing:
            self.target.delete_branch(passing)
        self.outcome.state = "imported"

    def _present(self, commit: SourceCommit | None, head: str) -> dict[str, Names]:
        """The names of each file's content on the server, with those by which the source knows the same content."""
        before = self.target.files(head)
        if commit is not None:
            for file in self.source.files(self.item, commit):
                if file.path in before:
                    before[file.path] |= _told(file)
        return before

    def _commit(
        self, branch: str, commit: SourceCommit, parent: str, before: Mapping[str, Names]
    ) -> tuple[str, dict[str, Names]]:
        """The branch's head with that commit on it, and the names of what it holds then."""
        files = self.source.files(self.item, commit)
        after = {file.path: before[file.path] for file in files if before.get(file.path, Names()) & _told(file)}
        self.outcome.kept_bytes += sum(file.size_bytes for file in files if file.path in after)
        changed = [file for file in files if file.path not in after]
        with Draft() as draft:
            for path in before.keys() - {file.path for file in files} - {ATTRIBUTES}:
                draft.delete(path)
            for batch in _batches(changed):
                contents = self._contents(commit, batch)
                after |= {content.path: content.names for content in contents}
                fresh = [content for content in contents if not content.names & before.get(content.path, Names())]
                self.outcome.kept_bytes += sum(c.size_bytes for c in contents) - sum(c.size_bytes for c in fresh)
                self._send(branch, fresh, draft)
            if draft.is_empty:
                return parent, after
            head = self.target.commit(branch, draft, _message(commit, self.item.origin), parent)
        self.outcome.commits += head != parent
        return head, after

    def _contents(self, commit: SourceCommit, batch: Sequence[SourceFile]) -> list[Content]:
        """The files with their digests; several are read at once, as each costs the source's delay."""
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(lambda file: self._content(commit, file), batch))

    def _content(self, commit: SourceCommit, file: SourceFile) -> Content:
        """The file with its digest: as told for a large one, else found by reading it."""

        def read() -> Iterator[bytes]:
            return self.source.read(self.item, commit, file)

        if file.is_large and file.digest:
            return Content(file.path, file.size_bytes, file.digest, b"", read, is_large=True)
        if file.size_bytes > WHOLE_BYTES:
            sample = b"".join(self.source.read(self.item, commit, file, 0, SAMPLE_BYTES))
            digest, oid = file.digest, file.oid
            if digest is None:
                digest, oid = file_names(read(), file.size_bytes)
            _check(file, digest, oid)
            return Content(file.path, file.size_bytes, digest, sample, read, oid=oid)
        whole = b"".join(read())
        digest, oid = file_names(iter((whole,)), len(whole))
        _check(file, digest, oid)
        return Content(file.path, len(whole), digest, whole[:SAMPLE_BYTES], lambda: iter((whole,)), oid=oid)

    def _send(self, branch: str, contents: Sequence[Content], draft: Draft) -> None:
        """Send the large ones of some files, and put all of them into the commit."""
        undecided = [content for content in contents if content.is_large is None]
        modes = self.target.modes(branch, undecided) if undecided else {}
        large = [content for content in contents if modes.get(content.path, True)]
        sent = self.target.send_large(large, self.seen) if large else set()
        for content in contents:
            if not modes.get(content.path, True):
                draft.add(content.path, b"".join(content.read()))
                self.seen(content.path, content.size_bytes)
                self.outcome.sent_bytes += content.size_bytes
                continue
            draft.add_large(content.path, content.digest, content.size_bytes)
            if content.digest in sent:
                sent.discard(content.digest)
                self.outcome.sent_bytes += content.size_bytes
            else:
                self.outcome.kept_bytes += content.size_bytes


def _refs(source: Source, item: Item) -> Sequence[SourceRef]:
    """The item's refs. Raises SourceFailed where there is nothing to bring."""
    refs = [ref for ref in source.refs(item) if ref.commits]
    if not refs:
        raise SourceFailed(f"{item.origin}: has no commit on any branch")
    return refs


def _told(file: SourceFile) -> Names:
    return frozenset(name for name in (file.digest, file.oid) if name)


def _check(file: SourceFile, digest: str, oid: str | None) -> None:
    """Raises SourceFailed when the bytes are not those that the source announced."""
    if file.digest not in (None, digest) or (file.oid is not None and file.oid != oid):
        raise SourceFailed(f"{file.path}: the source sent other bytes than it announced; run the import again")


def _trailer(message: str, origin: str) -> str | None:
    """The source's name of a commit, from the last line of its message; None for a commit of another origin."""
    last = message.rstrip().rpartition("\n")[2]
    name, at, key = last.removeprefix(TRAILER).rpartition("@")
    return key if last.startswith(TRAILER) and at and name == origin else None


def _message(commit: SourceCommit, origin: str) -> tuple[str, str]:
    """Title and description of a commit here: the source's words, then who, when, and where from."""
    title = _storable(commit.title)[:TITLE_CHARACTERS] or "Import"
    lines = [AUTHOR + commit.author] * bool(commit.author) + [DATE + commit.at] * bool(commit.at)
    trailer = "\n".join(_storable(" ".join(line.split())) for line in [*lines, f"{TRAILER}{origin}@{commit.key}"])
    return title, "\n\n".join(filter(None, (_storable(commit.body)[:BODY_CHARACTERS].strip(), trailer)))


def _storable(text: str) -> str:
    """`text` without NULs and halves of characters, which no database keeps."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _batches(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """The files in groups whose small ones fit into memory together."""
    left = iter(files)
    while batch := list(islice(left, BATCH_FILES)):
        yield batch
