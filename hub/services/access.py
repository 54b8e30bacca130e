"""Who is calling and what they may do. Rights are decided here and nowhere else."""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_
from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import Account, Membership, Repository, Token, now
from adapterhub.hub.errors import Forbidden, GatedRepo, InvalidToken, NotAuthenticated, RepoNotFound

WRITING_ROLES = ("admin", "write")
"""Roles in an organisation, and of a token, that may change repositories."""


@dataclass(frozen=True)
class Caller:
    """Who asks. is_admin: an administrator of the service who came with a token of role admin."""

    account_id: str | None = None
    name: str | None = None
    is_admin: bool = False
    token_id: str | None = None
    token_role: str = "read"  # noqa: S105  a role, no secret

    @property
    def is_anonymous(self) -> bool:
        """Whether no token was sent."""
        return self.account_id is None


ANONYMOUS = Caller()


def token_digest(text: str) -> str:
    """What the database knows of a token: its SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def authenticate(session: Session, header: str | None) -> Caller:
    """Who sent that Authorization header; ANONYMOUS without one.

    Takes "Bearer <token>", and "Basic" with the token as password, as git sends it. Raises InvalidToken for a token
    that is unknown, expired or revoked, and for any other header.
    """
    if header is None:
        return ANONYMOUS
    return _caller(session, col(Token.token_sha256) == token_digest(_token_of(header)))


def caller_of_token(session: Session, token_id: str) -> Caller:
    """Who that token, known by its id from a signed web session, belongs to. Raises InvalidToken as `authenticate`."""
    return _caller(session, col(Token.id) == token_id)


def readable(caller: Caller) -> ColumnElement[bool]:
    """The SQL condition on `Repository` under which `caller` may see it; deleted ones never."""
    alive = col(Repository.deleted_at).is_(None)
    if caller.is_admin:
        return alive
    public = col(Repository.is_private).is_(False)
    if caller.account_id is None:
        return alive & public
    organisations = select(Membership.organisation_id).where(Membership.user_id == caller.account_id)
    owner = col(Repository.owner_id)
    return alive & or_(public, owner == caller.account_id, owner.in_(organisations))


def require_read(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may read `repo`. Raises RepoNotFound, as if it were missing."""
    if repo.deleted_at is not None:
        raise RepoNotFound(repo.full_name)
    if repo.is_private and not caller.is_admin and _role(session, caller, repo.owner_id) is None:
        raise RepoNotFound(repo.full_name)


def require_content(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may read the files of `repo`, and not only about it. Raises RepoNotFound, GatedRepo."""
    require_read(session, caller, repo)
    if repo.gated and not caller.is_admin and _role(session, caller, repo.owner_id) is None:
        raise GatedRepo(f"{repo.full_name}: its files are gated; ask its owner to be let in")


def require_write(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may change the content of `repo`. Raises RepoNotFound, NotAuthenticated or Forbidden."""
    require_read(session, caller, repo)
    require_namespace(session, caller, repo.owner_id, f"write to {repo.full_name}")


def require_owner(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may delete, move or reconfigure `repo`. Raises as `require_write`."""
    require_write(session, caller, repo)
    if not caller.is_admin and _role(session, caller, repo.owner_id) != "admin":
        raise Forbidden(f"{repo.full_name}: only its owner or an administrator of the organisation may do that")


def require_namespace(session: Session, caller: Caller, owner_id: str, deed: str) -> None:
    """Pass when `caller` may create and change repositories of that account. Raises NotAuthenticated or Forbidden."""
    require_writing_token(caller)
    if not caller.is_admin and _role(session, caller, owner_id) not in WRITING_ROLES:
        raise Forbidden(f"you ({caller.name}) have no right to {deed}")


def require_writing_token(caller: Caller) -> None:
    """Pass when `caller` came with a token that may write. Raises NotAuthenticated or Forbidden."""
    if caller.is_anonymous:
        raise NotAuthenticated("this needs a token; log in, or send Authorization: Bearer <token>")
    if caller.token_role not in WRITING_ROLES:
        raise Forbidden(f"this token of {caller.name} may only read; make one with the role write")


def require_admin(caller: Caller) -> None:
    """Pass for an administrator of the service with a token of role admin. Raises NotAuthenticated or Forbidden."""
    require_writing_token(caller)
    if not caller.is_admin:
        raise Forbidden("only an administrator of this service, with a token of role admin, may do that")


def _caller(session: Session, condition: ColumnElement[bool]) -> Caller:
    found = session.exec(
        select(Token, Account).join(Account, col(Account.id) == col(Token.account_id)).where(condition)
    ).first()
    if found is None:
        raise InvalidToken("Invalid credentials in Authorization header")
    token, account = found
    if token.revoked_at or account.disabled_at or (token.expires_at and token.expires_at <= now()):
        raise InvalidToken("Invalid credentials in Authorization header: the token expired or was revoked")
    return Caller(account.id, account.name, account.is_admin and token.role == "admin", token.id, token.role)


def _token_of(header: str) -> str:
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            pass
    raise InvalidToken("Invalid credentials in Authorization header: send Bearer and a token")


def _role(session: Session, caller: Caller, owner_id: str) -> str | None:
    """The caller's role in that account: admin in their own, as a member in an organisation."""
    if caller.account_id is None:
        return None
    if caller.account_id == owner_id:
        return "admin"
    member = session.get(Membership, (owner_id, caller.account_id))
    return member.role if member else None
