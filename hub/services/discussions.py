"""Discussions and pull requests: what people say about a repository, and the commits they propose to it.

A pull request is a discussion with a ref of its own, "refs/pr/<num>". Merging it makes a commit with two parents whose
files are those of both sides, path by path; a path that both changed, each to something else, is for people to settle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Commit, Discussion, DiscussionEvent, Ref, Repository, now
from adapterhub.hub.errors import (
    Conflict,
    DiscussionNotFound,
    Forbidden,
    HeadMoved,
    InvalidRequest,
    MergeConflict,
    TooLarge,
)
from adapterhub.hub.services import audit, commits, refs, repos, trees
from adapterhub.hub.services.access import Caller, require_discussion, require_moderation, require_read, require_write
from adapterhub.hub.services.commits import Place
from adapterhub.hub.services.names import is_storable
from adapterhub.hub.services.trees import Entry

PAGE = 50
TITLE_CHARACTERS = 200
COMMENT_BYTES = 64 << 10
OPEN_AT_ONCE = 100
"""Open discussions of one author in one repository: more are no conversation."""
HISTORY = 10
"""Earlier texts that are kept of a comment."""

STATUSES = ("open", "closed")


@dataclass(frozen=True)
class Told:
    """An event with its author's name."""

    event: DiscussionEvent
    author: str


@dataclass(frozen=True)
class Shown:
    """A discussion as it is listed."""

    row: Discussion
    author: str
    repo: Repository


@dataclass(frozen=True)
class Details:
    """A discussion with all that happened in it. conflicts: paths that a pull request and its branch both changed."""

    shown: Shown
    events: tuple[Told, ...]
    head: str | None
    conflicts: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Which discussions. kind: all, discussion or pull_request; status: all, open or closed (merged ones too)."""

    author: str = ""
    kind: str = "all"
    status: str = "all"


def listing(
    session: Session, caller: Caller, repo: Repository, wanted: Wanted, *, page: int = 0
) -> tuple[list[Shown], int]:
    """A page of the repository's discussions, newest first, and how many there are. Raises RepoNotFound."""
    require_read(session, caller, repo)
    conditions = [col(Discussion.repository_id) == repo.id, *_conditions(wanted)]
    joined = select(Discussion, Account.name).join(Account, col(Account.id) == col(Discussion.author_id))
    rows = session.exec(
        joined.where(*conditions).order_by(col(Discussion.num).desc()).offset(page * PAGE).limit(PAGE)
    ).all()
    counted = select(func.count()).select_from(Discussion).join(Account, col(Account.id) == col(Discussion.author_id))
    total = session.exec(counted.where(*conditions)).one()
    return [Shown(row, author, repo) for row, author in rows], total


def details(session: Session, caller: Caller, repo: Repository, num: int) -> Details:
    """One discussion. Raises RepoNotFound, DiscussionNotFound."""
    require_read(session, caller, repo)
    row = _get(session, repo, num)
    rows = session.exec(
        select(DiscussionEvent, Account.name)
        .join(Account, col(Account.id) == col(DiscussionEvent.author_id))
        .where(DiscussionEvent.repository_id == repo.id, DiscussionEvent.num == num)
        .order_by(col(DiscussionEvent.position))
    ).all()
    author = session.get_one(Account, row.author_id).name
    head = refs.head(session, repo, _ref(num)) if row.is_pull_request else None
    conflicts: list[str] = []
    if head is not None and row.status in ("open", "draft"):
        ours = trees.by_path(session, repo, refs.branch_head(session, repo, repo.default_branch))
        conflicts = _merged(session, repo, row, ours, head)[1]
    return Details(Shown(row, author, repo), tuple(Told(*one) for one in rows), head, tuple(conflicts))


def create(
    session: Session, caller: Caller, repo: Repository, title: str, text: str, *, is_pull_request: bool
) -> Discussion:
    """A fresh discussion; as a pull request, a draft that stands where the default branch does.

    Raises RepoNotFound, NotAuthenticated, Forbidden, InvalidRequest, TooLarge.
    """
    require_discussion(session, caller, repo)
    head = refs.branch_head(session, repo, repo.default_branch) if is_pull_request else None
    row = _open(session, caller, repo, title, text, base=head)
    if head:
        row.status = "draft"
        session.add(Ref(repository_id=repo.id, name=_ref(row.num), target_oid=head))
    return row


def comment(session: Session, caller: Caller, repo: Repository, num: int, text: str) -> Told:
    """The comment, said. Raises as `create`, DiscussionNotFound."""
    require_discussion(session, caller, repo)
    row = _get(session, repo, num)
    told = _add(session, caller, row, "comment", _comment(text))
    _audit(session, caller, repo, row, "discussion.comment")
    return told


def edit(session: Session, caller: Caller, repo: Repository, num: int, comment_id: str, text: str) -> Told:
    """The comment with another text, by its author alone. Raises DiscussionNotFound, Forbidden, InvalidRequest."""
    require_discussion(session, caller, repo)
    event = _get_comment(session, repo, num, comment_id)
    if event.author_id != caller.account_id:
        raise Forbidden("only its author changes what a comment says; others may hide it")
    if event.detail["hidden"]:
        raise Conflict("this comment is hidden; it is not changed any more")
    history = [{"raw": event.detail["text"], "updatedAt": event.updated_at.isoformat()}, *event.detail["history"]]
    _audit(session, caller, repo, _get(session, repo, num), "discussion.edit")
    return _change(session, event, {**_comment(text), "history": history[:HISTORY]})


def hide(session: Session, caller: Caller, repo: Repository, num: int, comment_id: str) -> Told:
    """The comment without its text, for ever; by its author or who may write. Raises DiscussionNotFound, Forbidden."""
    event = _get_comment(session, repo, num, comment_id)
    require_moderation(session, caller, repo, event.author_id)
    _audit(session, caller, repo, _get(session, repo, num), "discussion.hide")
    return _change(session, event, {"text": "", "history": [], "hidden": True})


def rename(session: Session, caller: Caller, repo: Repository, num: int, title: str) -> Told:
    """The change of title, made. Raises DiscussionNotFound, Forbidden, InvalidRequest."""
    row = _get(session, repo, num)
    require_moderation(session, caller, repo, row.author_id)
    before, row.title = row.title, _checked_title(title)
    session.add(row)
    told = _add(session, caller, row, "title-change", {"from": before, "to": row.title})
    _audit(session, caller, repo, row, "discussion.update")
    return told


def set_status(session: Session, caller: Caller, repo: Repository, num: int, status: str, text: str = "") -> Told:
    """The change of status, made: a discussion, or a pull request that is not merged, opened or closed.

    Raises DiscussionNotFound, Forbidden, InvalidRequest, Conflict.
    """
    row = _get(session, repo, num)
    require_moderation(session, caller, repo, row.author_id)
    if status not in STATUSES:
        raise InvalidRequest(f"status {status!r}: open or closed")
    if row.status == "merged":
        raise Conflict(f"{repo.full_name}: pull request {num} is merged; that is not undone")
    if row.status == status:
        raise Conflict(f"{repo.full_name}: discussion {num} is {status} already")
    if row.status == "closed":
        _require_few(session, repo, row.author_id)
    if text:
        _add(session, caller, row, "comment", _comment(text))
    row.status = status
    session.add(row)
    told = _add(session, caller, row, "status-change", {"status": status})
    _audit(session, caller, repo, row, "discussion.update")
    return told


def place_of(num: int) -> Place:
    """Onto the pull request of that number, while it is open: for its author, and for who may write."""

    def require(session: Session, caller: Caller, repo: Repository) -> None:
        row = _get(session, repo, num)
        require_moderation(session, caller, repo, row.author_id)
        if not row.is_pull_request or row.status not in ("open", "draft"):
            raise Conflict(f"{repo.full_name}: {num} is no open pull request")

    def publish(session: Session, repo: Repository, head: str, commit: Commit) -> bool:
        row = _get(session, repo, num)
        _add_commit(session, row, commit)
        return refs.move_ref(session, repo, _ref(num), head, commit.oid)

    return Place(_ref(num), require, publish)


class Proposal:
    """A pull request that is opened by its first commit. num: its number, once that is written.

    at: the commit that it begins from, "" for the head of the branch.
    """

    def __init__(self, caller: Caller, branch: str, title: str, text: str, *, at: str = "") -> None:
        self.num = 0
        self._caller, self._title, self._text = caller, title[:TITLE_CHARACTERS], text
        self.place = Place(refs.BRANCH + branch, require_discussion, self._publish, lands=_ref(0), at=at)

    def _publish(self, session: Session, repo: Repository, head: str, commit: Commit) -> bool:
        row = _open(session, self._caller, repo, self._title, self._text, base=head)
        session.add(Ref(repository_id=repo.id, name=_ref(row.num), target_oid=commit.oid))
        _add_commit(session, row, commit)
        self.num, self.place.lands = row.num, _ref(row.num)
        return True


def merge(hub: Hub, caller: Caller, repo_id: str, num: int, text: str = "") -> str:
    """The commit on the default branch that holds both its files and the pull request's.

    Raises RepoNotFound, Forbidden, DiscussionNotFound; Conflict for one that is not open, MergeConflict; and what a
    commit of these files raises.
    """
    for _ in range(commits.REBASES):
        oid = _merge_once(hub, caller, repo_id, num, text)
        if oid is not None:
            return oid
    raise HeadMoved(f"{repo_id}: the branch is written by too many at once; try again")


def _merge_once(hub: Hub, caller: Caller, repo_id: str, num: int, text: str) -> str | None:
    with hub.db.read() as session:
        repo = repos.find(session, caller, repo_id)
        require_write(session, caller, repo)
        row = _get(session, repo, num)
        _require_open(repo, row)
        ours = refs.branch_head(session, repo, repo.default_branch)
        theirs = refs.head(session, repo, _ref(num))
        before = trees.by_path(session, repo, ours)
        after, conflicts = _merged(session, repo, row, before, theirs)
    if conflicts:
        raise MergeConflict(
            f"{repo.full_name}: pull request {num} and {repo.default_branch} both changed {', '.join(conflicts[:5])}; "
            f"commit the outcome to {repo.default_branch}, and the same to refs/pr/{num} or close it",
            conflicts,
        )

    def publish(session: Session, present: Repository, head: str, commit: Commit) -> bool:
        fresh = _get(session, present, num)
        _require_open(present, fresh)
        if refs.head(session, present, _ref(num)) != theirs:
            return False
        if text:
            _add(session, caller, fresh, "comment", _comment(text))
        fresh.status, fresh.merge_oid = "merged", commit.oid
        session.add(fresh)
        _add(session, caller, fresh, "status-change", {"status": "merged"})
        _audit(session, caller, present, fresh, "discussion.update")
        return refs.move_ref(session, present, refs.BRANCH + present.default_branch, head, commit.oid)

    place = Place(refs.BRANCH + repo.default_branch, require_write, publish)
    message = f"{row.title}\n\nMerge pull request {num}"
    return commits.write_state(hub, caller, repo, place, before, after, (ours, theirs), message)


def _merged(
    session: Session, repo: Repository, row: Discussion, ours: Mapping[str, Entry], head: str
) -> tuple[dict[str, Entry], list[str]]:
    """The files `ours` with what the pull request, at `head`, changed; and the paths that both changed differently."""
    base = trees.by_path(session, repo, str(row.base_oid))
    theirs = trees.by_path(session, repo, head)
    merged, conflicts = dict(ours), []
    for path in sorted(base.keys() | theirs.keys()):
        was, here, there = base.get(path), ours.get(path), theirs.get(path)
        if there in (was, here):
            continue
        if here != was:
            conflicts.append(path)
        elif there is None:
            del merged[path]
        else:
            merged[path] = there
    return merged, conflicts


def _open(session: Session, caller: Caller, repo: Repository, title: str, text: str, *, base: str | None) -> Discussion:
    _require_few(session, repo, str(caller.account_id))
    last = session.exec(select(func.max(Discussion.num)).where(Discussion.repository_id == repo.id)).one()
    row = Discussion(
        repository_id=repo.id,
        num=(last or 0) + 1,
        title=_checked_title(title),
        author_id=str(caller.account_id),
        status="open",
        is_pull_request=base is not None,
        base_oid=base,
    )
    session.add(row)
    session.flush()
    if text:
        _add(session, caller, row, "comment", _comment(text))
    _audit(session, caller, repo, row, "discussion.create")
    return row


def _require_few(session: Session, repo: Repository, author_id: str) -> None:
    """Pass while the author may have one more discussion open here. Raises InvalidRequest."""
    unfinished = col(Discussion.status).in_(("open", "draft"))
    of_author = col(Discussion.repository_id) == repo.id, col(Discussion.author_id) == author_id
    if session.exec(select(func.count()).where(*of_author, unfinished)).one() >= OPEN_AT_ONCE:
        raise InvalidRequest(f"{repo.full_name}: {OPEN_AT_ONCE} discussions of one author are open; close some first")


def _add_commit(session: Session, row: Discussion, commit: Commit) -> None:
    subject = commit.message.partition("\n")[0]
    caller = Caller(commit.author_id, commit.author_name)
    _add(session, caller, row, "commit", {"subject": subject, "oid": commit.oid})


def _add(session: Session, caller: Caller, row: Discussion, kind: str, detail: Mapping[str, Any]) -> Told:
    here = DiscussionEvent.repository_id == row.repository_id, DiscussionEvent.num == row.num
    last = session.exec(select(func.max(DiscussionEvent.position)).where(*here)).one()
    event = DiscussionEvent(
        repository_id=row.repository_id,
        num=row.num,
        position=0 if last is None else last + 1,
        kind=kind,
        author_id=str(caller.account_id),
        detail=dict(detail),
    )
    row.updated_at = event.created_at
    session.add_all((row, event))
    session.flush()
    return Told(event, str(caller.name))


def _change(session: Session, event: DiscussionEvent, detail: Mapping[str, Any]) -> Told:
    event.detail, event.updated_at = dict(detail), now()
    session.add(event)
    session.flush()
    return Told(event, session.get_one(Account, event.author_id).name)


def _audit(session: Session, caller: Caller, repo: Repository, row: Discussion, action: str) -> None:
    told = {"num": row.num, "title": row.title, "status": row.status, "isPullRequest": row.is_pull_request}
    audit.record(session, caller, action, repo.id, repo.full_name, detail=told)


def _get(session: Session, repo: Repository, num: int) -> Discussion:
    row = session.get(Discussion, (repo.id, num)) if 0 < num < 1 << 31 else None
    if row is None:
        raise DiscussionNotFound(f"{repo.full_name}: no discussion {num}")
    return row


def _get_comment(session: Session, repo: Repository, num: int, comment_id: str) -> DiscussionEvent:
    _get(session, repo, num)
    event = session.get(DiscussionEvent, comment_id) if is_storable(comment_id) else None
    if event is None or (event.repository_id, event.num, event.kind) != (repo.id, num, "comment"):
        raise DiscussionNotFound(f"{repo.full_name}: no comment {comment_id} in discussion {num}")
    return event


def _require_open(repo: Repository, row: Discussion) -> None:
    if not row.is_pull_request:
        raise Conflict(f"{repo.full_name}: {row.num} is a discussion and holds nothing to merge")
    if row.status != "open":
        raise Conflict(f"{repo.full_name}: pull request {row.num} is {row.status}; only an open one is merged")


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.kind not in ("all", "discussion", "pull_request") or wanted.status not in ("all", "open", "closed"):
        raise InvalidRequest("type: all, discussion or pull_request; status: all, open or closed")
    if wanted.author:
        name = wanted.author if is_storable(wanted.author) else ""
        found.append(func.lower(col(Account.name)) == name.lower())
    if wanted.kind != "all":
        found.append(col(Discussion.is_pull_request).is_(wanted.kind == "pull_request"))
    if wanted.status != "all":
        unfinished = col(Discussion.status).in_(("open", "draft"))
        found.append(unfinished if wanted.status == "open" else ~unfinished)
    return found


def _comment(text: str) -> dict[str, Any]:
    if not text.strip() or not is_storable(text):
        raise InvalidRequest("a comment is empty, or holds a NUL or half a character; write it anew")
    if len(text.encode()) > COMMENT_BYTES:
        raise TooLarge(f"a comment of {len(text.encode())} bytes; at most {COMMENT_BYTES} are kept")
    return {"text": text, "history": [], "hidden": False}


def _checked_title(title: str) -> str:
    title = " ".join(title.split())
    if not 1 <= len(title) <= TITLE_CHARACTERS or not title.isprintable():
        raise InvalidRequest(f"the title of a discussion has 1 to {TITLE_CHARACTERS} printable characters")
    return title


def _ref(num: int) -> str:
    return f"{refs.PULL_REQUEST}{num}"


def number_of(revision: str) -> int | None:
    """The number of the pull request whose ref that is, None for any other revision."""
    number = revision.removeprefix(refs.PULL_REQUEST)
    is_one = revision.startswith(refs.PULL_REQUEST) and number.isascii() and number.isdigit() and len(number) < 10
    return int(number) if is_one else None
