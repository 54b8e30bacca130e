"""One's own tokens: made, listed, ended; and the scopes of the fine-grained ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import Account, Repository, Token, TokenScope, now
from adapterhub.hub.errors import AccountNotFound, Forbidden, InvalidRequest, TokenNotFound
from adapterhub.hub.services import accounts, repos
from adapterhub.hub.services.access import (
    EVERYTHING,
    FINE_GRAINED,
    GLOBAL_PERMISSIONS,
    PERMISSIONS,
    Caller,
    require_signed_in,
    require_writing_token,
)

MAX_SCOPES = 100
"""Most permissions of one token, counted once for each thing they hold for."""
MAX_DAYS = 3650
GLOBAL = "global"


@dataclass(frozen=True)
class Reach:
    """What a fine-grained token reaches. scoped: "ns/name", or "ns" for everything of an account -> permissions."""

    scoped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    everywhere: Sequence[str] = ()
    reads_gated: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was said."""
        return not (self.scoped or self.everywhere or self.reads_gated)


@dataclass(frozen=True)
class Scoped:
    """The permissions of a token on one thing. kind: user, org or model."""

    id: str
    kind: str
    name: str
    permissions: tuple[str, ...]


@dataclass(frozen=True)
class OwnToken:
    """A token with its scopes in words, for its owner."""

    token: Token
    everywhere: tuple[str, ...]
    scoped: tuple[Scoped, ...]


def create(
    session: Session, caller: Caller, name: str, role: str, reach: Reach | None = None, *, days: int | None = None
) -> tuple[OwnToken, str]:
    """A fresh token of the caller and its text, which is shown now and never again. days: until it ends, 1 to 3650.

    Raises Forbidden unless the caller's own token may write everything, and for a role above it; InvalidRequest;
    AccountNotFound and RepoNotFound for things that the caller does not see.
    """
    require_writing_token(caller)
    if role == "admin" and not caller.is_admin:
        raise Forbidden("only an administrator, with a token of role admin, makes tokens of role admin")
    reach = reach or Reach()
    if (role == FINE_GRAINED) == reach.is_nothing:
        raise InvalidRequest("scopes belong to fine-grained tokens, and each of those needs one at least")
    if days is not None and not 1 <= days <= MAX_DAYS:
        raise InvalidRequest(f"{days} days: a token ends after 1 to {MAX_DAYS}, or never")
    account = session.get_one(Account, caller.account_id)
    rows = _rows(session, caller, reach)
    ends = now() + timedelta(days=days) if days else None
    token, text = accounts.issue_token(
        session, caller, account, name, role, expires_at=ends, reads_gated=reach.reads_gated
    )
    for row in rows:
        session.add(TokenScope(token_id=token.id, **row))
    session.flush()
    return describe(session, token), text


def list_own(session: Session, caller: Caller) -> list[OwnToken]:
    """The caller's tokens that have not ended, newest first; a fine-grained one sees only itself.

    Raises NotAuthenticated.
    """
    require_signed_in(caller)
    mine = select(Token).where(Token.account_id == caller.account_id, col(Token.revoked_at).is_(None))
    if caller.token_role == FINE_GRAINED:
        mine = mine.where(Token.id == caller.token_id)
    found = session.exec(mine.order_by(col(Token.created_at).desc())).all()
    return [describe(session, token) for token in found if token.expires_at is None or token.expires_at > now()]


def revoke(session: Session, caller: Caller, name_or_id: str) -> None:
    """End the caller's token of that id, or of that name where only one has it.

    Any token may end itself; ending another takes one that may write everything. Raises TokenNotFound,
    NotAuthenticated, Forbidden, InvalidRequest for a name that several have.
    """
    found = [one.token for one in list_own(session, caller) if name_or_id in (one.token.id, one.token.name)]
    if not found:
        raise TokenNotFound(f"{name_or_id}: none of your tokens has this id or name")
    if len(found) > 1:
        raise InvalidRequest(f"{name_or_id}: {len(found)} tokens have this name; give the id of the one to end")
    if found[0].id != caller.token_id:
        require_writing_token(caller)
    accounts.revoke_token(session, caller, found[0].id)


def describe(session: Session, token: Token) -> OwnToken:
    """The token with its scopes, each thing under the name it has now; what was deleted is left out."""
    permissions: dict[tuple[str, str], list[str]] = {}
    scopes = select(TokenScope).where(TokenScope.token_id == token.id)
    for row in session.exec(scopes.order_by(col(TokenScope.entity_id), col(TokenScope.permission))):
        permissions.setdefault((row.entity_type, row.entity_id), []).append(row.permission)
    everywhere = tuple(permissions.pop((GLOBAL, EVERYTHING), ()))
    named = [
        Scoped(entity, kind, name, tuple(found))
        for (kind, entity), found in permissions.items()
        if (name := _name(session, kind, entity))
    ]
    return OwnToken(token, everywhere, tuple(named))


def _rows(session: Session, caller: Caller, reach: Reach) -> list[dict[str, str]]:
    rows = [
        {"entity_id": EVERYTHING, "entity_type": GLOBAL, "permission": one} for one in dict.fromkeys(reach.everywhere)
    ]
    for permission in reach.everywhere:
        if permission not in GLOBAL_PERMISSIONS:
            raise InvalidRequest(f"{permission!r} is not given for everything; only {', '.join(GLOBAL_PERMISSIONS)} is")
    for name, permissions in reach.scoped.items():
        kind, entity = _entity(session, caller, name)
        for permission in dict.fromkeys(permissions):
            if permission not in PERMISSIONS:
                raise InvalidRequest(f"permission {permission!r}: one of {', '.join(PERMISSIONS)}")
            rows.append({"entity_id": entity, "entity_type": kind, "permission": permission})
        if not permissions:
            raise InvalidRequest(f"{name}: say which permissions the token has there")
    if len(rows) > MAX_SCOPES:
        raise InvalidRequest(f"{len(rows)} permissions; a token carries at most {MAX_SCOPES}")
    return rows


def _entity(session: Session, caller: Caller, name: str) -> tuple[str, str]:
    """Kind and id of what a scope names: a repository, the caller, or one of their organisations."""
    if "/" in name:
        return "model", repos.find(session, caller, name).id
    account = accounts.find(session, name)
    if account.id == caller.account_id:
        return "user", account.id
    if account.id not in {one.id for one in accounts.organisations_of(session, str(caller.account_id))}:
        raise AccountNotFound(f"{name}: not you, and no organisation of yours")
    return "org", account.id


def _name(session: Session, kind: str, entity_id: str) -> str | None:
    if kind == "model":
        repo = session.get(Repository, entity_id)
        return repo.full_name if repo and repo.deleted_at is None else None
    account = session.get(Account, entity_id)
    return account.name if account else None
