"""Tokens by which organisations read what a mirrored hub shows to them alone.

A token is kept sealed, for the hub that was mirrored when it was set, and is sent to no other. What it opened is seen
by members of that organisation; when the token is replaced or removed, that ends, and another one must prove it anew.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlmodel import Session, col, select

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Account, Membership, MirrorAccess, MirrorToken
from adapterhub.hub.errors import InvalidRequest, TokenNotFound
from adapterhub.hub.services import accounts, audit, mirror_missing
from adapterhub.hub.services.access import Caller, may_keep_mirror_token, may_look_into, require_mirror_token
from adapterhub.hub.services.sealing import decrypt, encrypt
from adapterhub.hub.services.upstream import Upstream

CHARACTERS = 500
"""Longest token of another hub."""

_PURPOSE = "token for another hub"


@dataclass(frozen=True)
class Kept:
    """A token that is kept, without the token. source: the hub that it is for."""

    organisation: str
    source: str
    created_at: datetime


def listing(session: Session, caller: Caller) -> list[Kept]:
    """The organisations that have a token, of those whose token `caller` may set. Raises NotAuthenticated."""
    rows = session.exec(
        select(MirrorToken, Account)
        .join(Account, col(Account.id) == col(MirrorToken.organisation_id))
        .order_by(col(Account.name))
    ).all()
    return [
        Kept(owner.name, row.source_url, row.created_at)
        for row, owner in rows
        if may_keep_mirror_token(session, caller, owner)
    ]


def put(session: Session, hub: Hub, caller: Caller, organisation: str, token: str) -> None:
    """Keep that token for the organisation, in place of its former one.

    Raises NotAuthenticated, Forbidden, AccountNotFound; InvalidRequest for what is no token, and where no hub is
    mirrored.
    """
    owner = accounts.find_organisation(session, organisation)
    require_mirror_token(session, caller, owner)
    if hub.settings.mirror_url is None:
        raise InvalidRequest("no hub is mirrored here; set ADAPTERHUB_MIRROR_URL first, then its token")
    if not 0 < len(token) <= CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest(f"a token of another hub is 1 to {CHARACTERS} printable ASCII characters without spaces")
    row = session.get(MirrorToken, owner.id, with_for_update=True)
    _withdraw(session, owner.id)
    row = row or MirrorToken(organisation_id=owner.id, source_url="", token_sealed="")
    row.source_url = hub.settings.mirror_url.rstrip("/")
    row.token_sealed = encrypt(hub.secret, _PURPOSE, token)
    row.set_by = caller.account_id
    session.add(row)
    mirror_missing.forget_organisation(hub, owner.id)
    audit.record(session, caller, "mirror.token", owner.id, owner.name, detail={"source": row.source_url})


def remove(session: Session, hub: Hub, caller: Caller, organisation: str) -> None:
    """Forget the organisation's token, and what it opened. Raises as `put`; TokenNotFound where there is none."""
    owner = accounts.find_organisation(session, organisation)
    require_mirror_token(session, caller, owner)
    row = session.get(MirrorToken, owner.id, with_for_update=True)
    if row is None:
        raise TokenNotFound(f"{organisation}: keeps no token for another hub")
    _withdraw(session, owner.id)
    session.delete(row)
    mirror_missing.forget_organisation(hub, owner.id)
    audit.record(session, caller, "mirror.token_remove", owner.id, owner.name, detail={"source": row.source_url})


def is_kept(session: Session, hub: Hub, upstream: Upstream) -> bool:
    """Whether the token by which that was asked is its organisation's still; it stays so until the transaction ends."""
    row = session.get(MirrorToken, upstream.organisation_id, with_for_update=True)
    return row is not None and _upstream(hub, row, upstream.repo_id) == upstream


def of_caller(session: Session, hub: Hub, caller: Caller, url: str, repo_id: str) -> list[Upstream]:
    """The repository as each of the caller's organisations may be shown it, by name of the organisation.

    url: of the hub where it is. Raises SealBroken.
    """
    mine = (
        select(MirrorToken, Account)
        .join(Account, col(Account.id) == col(MirrorToken.organisation_id))
        .join(Membership, col(Membership.organisation_id) == col(Account.id))
        .where(col(Membership.user_id) == caller.account_id, MirrorToken.source_url == url)
        .order_by(col(Account.name))
    )
    rows = [row for row, owner in session.exec(mine) if may_look_into(session, caller, owner)]
    return [_upstream(hub, row, repo_id) for row in rows]


def of_repository(session: Session, hub: Hub, repository_id: str, url: str, repo_id: str) -> list[Upstream]:
    """The repository as those organisations are shown it that proved so, the latest first. Raises SealBroken."""
    proven = (
        select(MirrorToken)
        .join(MirrorAccess, col(MirrorAccess.organisation_id) == col(MirrorToken.organisation_id))
        .where(MirrorAccess.repository_id == repository_id, MirrorToken.source_url == url)
        .order_by(col(MirrorAccess.proven_at).desc())
    )
    return [_upstream(hub, row, repo_id) for row in session.exec(proven).all()]


def _upstream(hub: Hub, row: MirrorToken, repo_id: str) -> Upstream:
    token = decrypt(hub.secret, _PURPOSE, row.token_sealed)
    return Upstream(hub.settings, row.source_url, repo_id, token, row.organisation_id)


def _withdraw(session: Session, organisation_id: str) -> None:
    session.execute(delete(MirrorAccess).where(col(MirrorAccess.organisation_id) == organisation_id))
    session.flush()
