"""Users, organisations and their tokens."""

import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func
from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import Account, Membership, Token, now
from adapterhub.hub.errors import AccountExists, AccountNotFound, InvalidRequest, NotAuthenticated
from adapterhub.hub.services import audit
from adapterhub.hub.services.access import (
    ANONYMOUS,
    FINE_GRAINED,
    Caller,
    require_admin,
    require_membership,
    require_writing_token,
    token_digest,
)
from adapterhub.hub.services.names import check_account_name, is_storable, name_key

TOKEN_PREFIX = "ah_"  # noqa: S105  what every token starts with, for secret scanners
TOKEN_ROLES = ("read", "write", "admin", FINE_GRAINED)
MIRROR = "mirror"
"""The kind of an account that holds mirrors alone: nobody is it, belongs to it, or has a token of it."""
TEXT_CHARACTERS = 200
"""Longest name of a token, full name or address."""
MEMBER_ROLES = ("admin", "write", "contributor", "read")


@dataclass(frozen=True)
class Member:
    """One organisation of a caller, with the role there."""

    name: str
    fullname: str
    role: str
    id: str


@dataclass(frozen=True)
class Identity:
    """What a caller is told about themselves."""

    account: Account
    token: Token | None
    organisations: tuple[Member, ...]


def first_admin(session: Session, name: str, token: str | None = None) -> str | None:
    """The token of a fresh administrator, made when there is no account yet; None when there is one.

    token: the text to use in place of a random one.
    """
    if session.exec(select(Account.id).limit(1)).first():
        return None
    account = _add_account(session, ANONYMOUS, Account(kind="user", name=name, name_key="", is_admin=True))
    return issue_token(session, ANONYMOUS, account, "first administrator", "admin", text=token)[1]


def create_user(
    session: Session, caller: Caller, name: str, *, fullname: str = "", email: str = "", is_admin: bool = False
) -> Account:
    """A fresh user, made by an administrator. Raises Forbidden, InvalidName, NameReserved, AccountExists."""
    require_admin(caller)
    account = Account(kind="user", name=name, name_key="", fullname=fullname, email=email, is_admin=is_admin)
    return _add_account(session, caller, account)


def create_organisation(session: Session, caller: Caller, name: str, *, fullname: str = "") -> Account:
    """A fresh organisation with `caller` as its administrator, for any write token. Raises as `create_user`."""
    require_writing_token(caller)
    account = _add_account(session, caller, Account(kind="organisation", name=name, name_key="", fullname=fullname))
    session.add(Membership(organisation_id=account.id, user_id=str(caller.account_id), role="admin"))
    return account


def set_member(session: Session, caller: Caller, organisation: str, user: str, role: str | None) -> None:
    """Give `user` that role in the organisation, or take it away with None.

    Everybody may take themselves out. Raises NotAuthenticated; Forbidden unless `caller` administers the organisation
    or the service; AccountNotFound; InvalidRequest, also where no administrator would be left.
    """
    if role is not None and role not in MEMBER_ROLES:
        raise InvalidRequest(f"role {role!r}: one of {', '.join(MEMBER_ROLES)}")
    owner, member = find(session, organisation), find(session, user)
    if owner.kind != "organisation" or member.kind != "user":
        raise InvalidRequest("only users become members, and only of organisations")
    if role is None and member.id == caller.account_id:
        require_writing_token(caller)
    else:
        require_membership(session, caller, owner)
    present = session.get(Membership, (owner.id, member.id))
    if present is not None and present.role == "admin" and role != "admin" and _administrators(session, owner) == 1:
        raise InvalidRequest(f"{user} is the only administrator of {organisation}; make another one first")
    if present is not None:
        session.delete(present)
        session.flush()
    if role is not None:
        session.add(Membership(organisation_id=owner.id, user_id=member.id, role=role))
    audit.record(session, caller, "organisation.member", owner.id, owner.name, after=role, detail={"user": member.name})


def members(session: Session, organisation: str) -> list[tuple[Account, str]]:
    """The users of the organisation with their roles, by name. Raises AccountNotFound, for a user's name too."""
    owner = find_organisation(session, organisation)
    rows = session.exec(
        select(Account, Membership.role)
        .join(Membership, col(Membership.user_id) == col(Account.id))
        .where(Membership.organisation_id == owner.id)
        .order_by(col(Account.name))
    )
    return [(account, role) for account, role in rows]


def organisations_of(session: Session, user_id: str) -> list[Member]:
    """The organisations of a user with the role in each, by name."""
    rows = session.exec(
        select(Account, Membership.role)
        .join(Membership, col(Membership.organisation_id) == col(Account.id))
        .where(Membership.user_id == user_id)
        .order_by(col(Account.name))
    )
    return [Member(account.name, account.fullname, role, account.id) for account, role in rows]


def find(session: Session, name: str) -> Account:
    """The user or organisation of that name, whatever its case; no namespace of mirrors. Raises AccountNotFound."""
    key = name_key(name) if is_storable(name) else ""
    account = session.exec(select(Account).where(Account.name_key == key)).first()
    if account is None or account.kind == MIRROR or account.name.casefold() != name.casefold():
        raise AccountNotFound(f"{name}: no such user or organisation")
    return account


def find_user(session: Session, name: str) -> Account:
    """The user of that name. Raises AccountNotFound, for the name of an organisation too."""
    account = find(session, name)
    if account.kind != "user":
        raise AccountNotFound(f"{name}: an organisation, not a user")
    return account


def find_organisation(session: Session, name: str) -> Account:
    """The organisation of that name. Raises AccountNotFound, for the name of a user too."""
    account = find(session, name)
    if account.kind != "organisation":
        raise AccountNotFound(f"{name}: a user, not an organisation")
    return account


def list_users(session: Session, caller: Caller) -> list[Account]:
    """Every user, by name. Raises Forbidden unless `caller` administers the service."""
    require_admin(caller)
    return list(session.exec(select(Account).where(Account.kind == "user").order_by(col(Account.name))))


def issue_token(
    session: Session,
    caller: Caller,
    account: Account,
    name: str,
    role: str,
    *,
    expires_at: datetime | None = None,
    text: str | None = None,
    reads_gated: bool = False,
) -> tuple[Token, str]:
    """A fresh token of `account` and its text, which is shown now and never again. Rights: `tokens.create` checks them.

    The text is "ah_" and 43 characters that hold 256 random bits. Raises InvalidRequest for an unknown role.
    """
    if role not in TOKEN_ROLES:
        raise InvalidRequest(f"token role {role!r}: one of {', '.join(TOKEN_ROLES)}")
    _check_text(name)
    text = text or TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = Token(account_id=account.id, name=name, role=role, token_sha256=token_digest(text), expires_at=expires_at)
    token.reads_gated = reads_gated
    session.add(token)
    audit.record(session, caller, "token.create", account.id, account.name, detail={"name": name, "role": role})
    session.flush()
    return token, text


def revoke_token(session: Session, caller: Caller, token_id: str) -> None:
    """End a token of the caller, or anybody's for an administrator. Silent where there is none to end."""
    token = session.get(Token, token_id)
    if token is None or token.revoked_at or not (caller.is_admin or token.account_id == caller.account_id):
        return
    token.revoked_at = now()
    session.add(token)
    audit.record(session, caller, "token.revoke", token.account_id, token.name)


def whoami(session: Session, caller: Caller) -> Identity:
    """The caller's account, token and organisations. Raises NotAuthenticated for the anonymous caller."""
    account = session.get(Account, caller.account_id) if caller.account_id else None
    if account is None:
        raise NotAuthenticated("no token was sent; log in, or send Authorization: Bearer <token>")
    token = session.get(Token, caller.token_id) if caller.token_id else None
    return Identity(account, token, tuple(organisations_of(session, account.id)))


def _administrators(session: Session, organisation: Account) -> int:
    here = Membership.organisation_id == organisation.id, Membership.role == "admin"
    return session.exec(select(func.count()).select_from(Membership).where(*here)).one()


def _add_account(session: Session, caller: Caller, account: Account) -> Account:
    account.name_key = name_key(check_account_name(account.name))
    _check_text(account.fullname, account.email)
    taken = session.exec(select(Account.name).where(Account.name_key == account.name_key)).first()
    if taken:
        raise AccountExists(f"{account.name}: taken, or too like the account {taken}")
    session.add(account)
    session.flush()
    audit.record(session, caller, f"{account.kind}.create", account.id, account.name)
    return account


def _check_text(*texts: str) -> None:
    for text in texts:
        if len(text) > TEXT_CHARACTERS or not text.isprintable():
            raise InvalidRequest(f"{text[:40]!r}: at most {TEXT_CHARACTERS} printable characters")
