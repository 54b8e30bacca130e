"""Who is calling and what they may do. Rights are decided here and nowhere else."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, false, or_, true
from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import (
    AccessRequest,
    Account,
    Collection,
    Membership,
    Mirror,
    MirrorAccess,
    Repository,
    SavedRecipe,
    Token,
    TokenScope,
    now,
)
from adapterhub.hub.errors import (
    DisabledRepo,
    Forbidden,
    GatedAnonymous,
    GatedRepo,
    InvalidToken,
    NotAuthenticated,
    Refused,
    RepoNotFound,
)

FINE_GRAINED = "fine-grained"
WRITING_ROLES = ("admin", "write")
"""Roles of a token that may change whatever its account may change."""

EVERYTHING = ""
"""The entity of a scope that holds for all that is public."""

Scopes = frozenset[tuple[str, str]]
"""What a fine-grained token carries: (permission, id of an account or repository, or EVERYTHING)."""


@dataclass(frozen=True)
class Caller:
    """Who asks. is_admin: an administrator of the service who came with a token of role admin.

    scopes and reads_gated count for a token of role fine-grained alone: others are bounded by their role.
    """

    account_id: str | None = None
    name: str | None = None
    is_admin: bool = False
    token_id: str | None = None
    token_role: str = "read"  # noqa: S105  a role, no secret
    scopes: Scopes = frozenset()
    reads_gated: bool = False

    @property
    def is_anonymous(self) -> bool:
        """Whether no token was sent."""
        return self.account_id is None


ANONYMOUS = Caller()


@dataclass(frozen=True)
class Rule:
    """Who may do a deed: members of the owning account in one of `roles`, if their token may; None: every account.

    permissions: any one of them, on the thing or its owner, lets a fine-grained token. reads: a read token may too.
    """

    about: str
    roles: frozenset[str] | None
    permissions: frozenset[str]
    reads: bool = False


_MEMBERS = frozenset({"admin", "write", "contributor", "read"})
_WRITERS = frozenset({"admin", "write"})
_ADMINS = frozenset({"admin"})
_SEE_HOOKS = frozenset({"user.webhooks.read", "user.webhooks.write"})

RULES: Mapping[str, Rule] = {
    "read": Rule(
        "see private repositories, and read all files",
        _MEMBERS,
        frozenset({"repo.content.read", "repo.write"}),
        reads=True,
    ),
    "write": Rule("change the content of a repository", _WRITERS, frozenset({"repo.write"})),
    "create": Rule("make repositories", _WRITERS | {"contributor"}, frozenset({"repo.write"})),
    "own": Rule("delete, move and reconfigure a repository", _ADMINS, frozenset({"repo.write"})),
    "see requests": Rule("see who asks for gated files", _WRITERS, frozenset({"repo.access.read", "repo.write"})),
    "answer requests": Rule("let them in", _WRITERS, frozenset({"repo.write"})),
    "discuss": Rule("open discussions and write in them", None, frozenset({"discussion.write"})),
    "read collections": Rule(
        "see private collections", _MEMBERS, frozenset({"collection.read", "collection.write"}), reads=True
    ),
    "write collections": Rule("make and change collections", _WRITERS, frozenset({"collection.write"})),
    "read recipes": Rule(
        "see private saved recipes", _MEMBERS, frozenset({"repo.content.read", "repo.write"}), reads=True
    ),
    "write recipes": Rule("save, rename, share and delete recipes", _WRITERS, frozenset({"repo.write"})),
    "see webhooks": Rule("see webhooks", _ADMINS, _SEE_HOOKS, reads=True),
    "write webhooks": Rule("make and change webhooks", _ADMINS, frozenset({"user.webhooks.write"})),
    "choose members": Rule("choose the members of an organisation", _ADMINS, frozenset({"org.write"})),
    "keep mirror tokens": Rule("set the organisation's token for a mirrored hub", _ADMINS, frozenset({"org.write"})),
    "configure": Rule("change the settings of an account", _ADMINS, frozenset({"org.write"})),
    "run jobs": Rule("merge and port", None, frozenset({"repo.write"})),
}
"""Every deed and who may do it; what stands in no rule is refused. An administrator of the service may do all."""

PERMISSIONS = tuple(sorted({permission for rule in RULES.values() for permission in rule.permissions}))
"""All that a fine-grained token can carry, in Hugging Face's words."""

GLOBAL_PERMISSIONS = ("discussion.write",)
"""Those that a token can carry for everything public."""


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
    """The SQL condition on `Repository` under which `caller` may see it; deleted ones never, disabled ones admins."""
    alive = col(Repository.deleted_at).is_(None)
    if caller.is_admin:
        return alive
    public = col(Repository.is_private).is_(False)
    shown = alive & col(Repository.disabled_at).is_(None)
    owner = col(Repository.owner_id)
    return shown & or_(public, _own(caller, "read", owner, col(Repository.id)), _shown_there(caller))


def readable_collections(caller: Caller) -> ColumnElement[bool]:
    """The SQL condition on `Collection` under which `caller` may see it."""
    if caller.is_admin:
        return true()
    owner = col(Collection.owner_id)
    return or_(col(Collection.is_private).is_(False), _own(caller, "read collections", owner, owner))


def readable_recipes(caller: Caller) -> ColumnElement[bool]:
    """The SQL condition on `SavedRecipe` under which `caller` may know of it; deleted ones never."""
    alive = col(SavedRecipe.deleted_at).is_(None)
    if caller.is_admin:
        return alive
    owner = col(SavedRecipe.owner_id)
    return alive & or_(col(SavedRecipe.is_private).is_(False), _own(caller, "read recipes", owner, owner))


def require_read(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may read about `repo`. Raises RepoNotFound, as if it were missing; DisabledRepo."""
    if repo.deleted_at is not None or not may_know(session, caller, repo):
        raise RepoNotFound(repo.full_name)
    if repo.disabled_at is not None and not caller.is_admin:
        raise DisabledRepo(repo.full_name, repo.disabled_reason)


def may_know(session: Session, caller: Caller, repo: Repository) -> bool:
    """Whether `caller` may know of `repo`, be it deleted or disabled meanwhile."""
    return not repo.is_private or _may(session, caller, "read", repo)


def require_content(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may read the files of `repo`, and not only about it. Raises as `require_read`; GatedRepo."""
    require_read(session, caller, repo)
    if not repo.gated or _may(session, caller, "read", repo):
        return
    if caller.is_anonymous:
        raise GatedAnonymous(repo.full_name)
    request = access_request(session, caller, repo)
    is_let_in = _role(session, caller, repo) is not None or (request is not None and request.status == "accepted")
    if is_let_in and _token_may(caller, "read", repo.id, repo.owner_id):
        return
    if not is_let_in or not caller.reads_gated:
        raise GatedRepo(repo.full_name, _gate_hint(repo, request, is_let_in=is_let_in))


def may_read_content(session: Session, caller: Caller, repo: Repository) -> bool:
    """Whether `require_content` passes."""
    try:
        require_content(session, caller, repo)
    except (RepoNotFound, Refused):
        return False
    return True


def access_request(session: Session, caller: Caller, repo: Repository) -> AccessRequest | None:
    """What the caller asked of the owner of a gated repository, if anything."""
    asked = col(AccessRequest.repository_id) == repo.id, col(AccessRequest.account_id) == caller.account_id
    return session.exec(select(AccessRequest).where(*asked)).first()


def require_write(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may change the content of `repo`. Raises RepoNotFound, NotAuthenticated or Forbidden."""
    require_read(session, caller, repo)
    _require(session, caller, "write", repo, f"write to {repo.full_name}")
    _refuse_mirror(session, repo)


def require_owner(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may delete, move or reconfigure `repo`. Raises as `require_write`."""
    require_read(session, caller, repo)
    _require(session, caller, "write", repo, f"write to {repo.full_name}")
    if not _may(session, caller, "own", repo):
        raise Forbidden(f"{repo.full_name}: only its owner or an administrator of the organisation may do that")


def require_requests(session: Session, caller: Caller, repo: Repository, *, answer: bool) -> None:
    """Pass when `caller` may see, or answer, who asks for the files of `repo`. Raises as `require_write`."""
    require_read(session, caller, repo)
    deed = "answer requests" if answer else "see requests"
    _require(session, caller, deed, repo, f"decide who reads the files of {repo.full_name}")


def require_discussion(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may open discussions of `repo` and write in them. Raises as `require_write`.

    Whoever may discuss may also propose: open a pull request, and upload the bytes that it holds.
    """
    require_read(session, caller, repo)
    _require(session, caller, "discuss", repo, f"discuss {repo.full_name}")
    _refuse_mirror(session, repo)


def require_moderation(session: Session, caller: Caller, repo: Repository, author_id: str) -> None:
    """Pass for the author of a discussion or comment, and for who may write to `repo`. Raises as `require_write`."""
    require_discussion(session, caller, repo)
    if caller.account_id != author_id and not _may(session, caller, "write", repo):
        raise Forbidden(f"{repo.full_name}: only the author, or who may write to the repository, may do that")


def require_upload(session: Session, caller: Caller, repo: Repository) -> None:
    """Pass when `caller` may upload bytes to `repo`, to commit or to propose them. Raises as `require_write`."""
    require_read(session, caller, repo)
    if not _may(session, caller, "discuss", repo):
        _require(session, caller, "write", repo, f"write to {repo.full_name}")
    _refuse_mirror(session, repo)


def require_namespace(session: Session, caller: Caller, owner_id: str, deed: str) -> None:
    """Pass when `caller` may have repositories in that account. Raises NotAuthenticated or Forbidden."""
    _require(session, caller, "create", owner_id, deed)


def require_collections(session: Session, caller: Caller, owner: Account) -> None:
    """Pass when `caller` may make and change collections of `owner`. Raises NotAuthenticated or Forbidden."""
    _require(session, caller, "write collections", owner.id, f"change collections of {owner.name}")


def require_recipes(session: Session, caller: Caller, owner: Account) -> None:
    """Pass when `caller` may save and change recipes of `owner`. Raises NotAuthenticated or Forbidden."""
    _require(session, caller, "write recipes", owner.id, f"change saved recipes of {owner.name}")


def require_webhooks(session: Session, caller: Caller, owner: Account, *, change: bool) -> None:
    """Pass when `caller` may see, or change, the webhooks of `owner`. Raises NotAuthenticated or Forbidden."""
    deed = "write webhooks" if change else "see webhooks"
    _require(session, caller, deed, owner.id, f"manage webhooks of {owner.name}")


def require_membership(session: Session, caller: Caller, organisation: Account) -> None:
    """Pass when `caller` may choose the members of that organisation. Raises NotAuthenticated or Forbidden."""
    _require(session, caller, "choose members", organisation.id, f"choose the members of {organisation.name}")


def require_settings(session: Session, caller: Caller, owner: Account) -> None:
    """Pass when `caller` may change the settings of that account. Raises NotAuthenticated or Forbidden."""
    _require(session, caller, "configure", owner.id, f"change the settings of {owner.name}")


def require_mirror_token(session: Session, caller: Caller, organisation: Account) -> None:
    """Pass when `caller` may set that organisation's token for a mirrored hub. Raises NotAuthenticated or Forbidden."""
    told = f"set the token of {organisation.name} for a mirrored hub"
    _require(session, caller, "keep mirror tokens", organisation.id, told)


def may_keep_mirror_token(session: Session, caller: Caller, organisation: Account) -> bool:
    """Whether `require_mirror_token` passes. Raises NotAuthenticated."""
    require_signed_in(caller)
    return _may(session, caller, "keep mirror tokens", organisation.id)


def may_look_into(session: Session, caller: Caller, owner: Account) -> bool:
    """Whether `require_member` passes."""
    return _may(session, caller, "read", owner.id)


def require_member(session: Session, caller: Caller, owner: Account) -> None:
    """Pass when `caller` belongs to that account, in whatever role. Raises NotAuthenticated or Forbidden."""
    _require(session, caller, "read", owner.id, f"look into {owner.name}")


def require_jobs(caller: Caller) -> None:
    """Pass when `caller` may have work done; where its result goes is another right. Raises as `require_namespace`."""
    require_signed_in(caller)
    if not any(permission in RULES["run jobs"].permissions for permission, _ in caller.scopes):
        require_writing_token(caller)


def require_signed_in(caller: Caller) -> None:
    """Pass when a token was sent. Raises NotAuthenticated."""
    if caller.is_anonymous:
        raise NotAuthenticated("this needs a token; log in, or send Authorization: Bearer <token>")


def require_writing_token(caller: Caller) -> None:
    """Pass when the token may change whatever its account may. Raises NotAuthenticated, or Forbidden for others.

    A fine-grained token never passes: what it may change is said by a deed about a thing.
    """
    require_signed_in(caller)
    if caller.token_role == FINE_GRAINED:
        raise Forbidden(f"this fine-grained token of {caller.name} does not reach that; use one with the role write")
    if caller.token_role not in WRITING_ROLES:
        raise Forbidden(f"this token of {caller.name} may only read; make one with the role write")


def require_admin(caller: Caller) -> None:
    """Pass for an administrator of the service with a token of role admin. Raises NotAuthenticated or Forbidden."""
    require_writing_token(caller)
    if not caller.is_admin:
        raise Forbidden("only an administrator of this service, with a token of role admin, may do that")


def _refuse_mirror(session: Session, repo: Repository) -> None:
    """Pass for a repository of this hub's own. Raises Forbidden for a mirror, which says where to go instead."""
    source = session.get(Mirror, repo.id)
    if source is not None:
        raise Forbidden(f"{repo.full_name}: a mirror of {source.source_url}, read-only here; go to that hub")


def _require(session: Session, caller: Caller, deed: str, on: Repository | str, told: str) -> None:
    """Pass when `caller` may do that deed. Raises NotAuthenticated; Forbidden, saying what token or account lacks."""
    require_signed_in(caller)
    if _may(session, caller, deed, on):
        return
    if caller.token_role == FINE_GRAINED:
        wanted = " or ".join(sorted(RULES[deed].permissions))
        raise Forbidden(f"you ({caller.name}) have no right to {told} with this token; it would need {wanted} there")
    if not _token_may(caller, deed):
        require_writing_token(caller)
    raise Forbidden(f"you ({caller.name}) have no right to {told}")


def _may(session: Session, caller: Caller, deed: str, on: Repository | str) -> bool:
    """The one decision: whether `caller` may do `deed` to a repository, or in the account of that id."""
    if caller.is_anonymous:
        return False
    if caller.is_admin:
        return True
    rule = RULES[deed]
    if rule.roles is not None and _role(session, caller, on) not in rule.roles:
        return False
    ids = (on,) if isinstance(on, str) else (on.id, on.owner_id, *_organisations_shown(session, caller, on))
    is_public = isinstance(on, Repository) and not on.is_private
    return _token_may(caller, deed, *ids, *((EVERYTHING,) if is_public else ()))


def _organisations_shown(session: Session, caller: Caller, repo: Repository) -> list[str]:
    """Those of the caller's organisations to whom the repository, a mirror, is shown where it comes from."""
    if not repo.is_private:
        return []
    mine = col(Membership.organisation_id) == col(MirrorAccess.organisation_id)
    shown = select(MirrorAccess.organisation_id).join(Membership, mine)
    shown = shown.where(MirrorAccess.repository_id == repo.id, Membership.user_id == caller.account_id)
    return list(session.exec(shown))


def _shown_there(caller: Caller) -> ColumnElement[bool]:
    """The SQL condition on `Repository` under which it is a mirror that is shown to the caller where it comes from."""
    if caller.account_id is None:
        return false()
    mine = col(Membership.organisation_id) == col(MirrorAccess.organisation_id)
    shown = select(MirrorAccess.repository_id).join(Membership, mine).where(Membership.user_id == caller.account_id)
    if caller.token_role == FINE_GRAINED:
        reached = [one for permission, one in caller.scopes if permission in RULES["read"].permissions]
        shown = shown.where(
            or_(col(MirrorAccess.organisation_id).in_(reached), col(MirrorAccess.repository_id).in_(reached))
        )
    return col(Repository.id).in_(shown)


def _token_may(caller: Caller, deed: str, *ids: str) -> bool:
    """Whether the caller's token reaches as far as `deed` on one of those things."""
    rule = RULES[deed]
    if caller.token_role == FINE_GRAINED:
        return any((permission, one) in caller.scopes for permission in rule.permissions for one in ids)
    return rule.reads or caller.token_role in WRITING_ROLES


def _own(caller: Caller, deed: str, owner: Any, thing: Any) -> ColumnElement[bool]:
    """The SQL condition of `_may` for a deed that every member may do: on things in column `thing`, of `owner`."""
    if caller.account_id is None:
        return false()
    organisations = select(Membership.organisation_id).where(Membership.user_id == caller.account_id)
    mine = or_(owner == caller.account_id, owner.in_(organisations))
    if caller.token_role != FINE_GRAINED:
        return mine
    reached = [one for permission, one in caller.scopes if permission in RULES[deed].permissions]
    return mine & or_(owner.in_(reached), thing.in_(reached))


def _gate_hint(repo: Repository, request: AccessRequest | None, *, is_let_in: bool) -> str:
    if is_let_in:
        return "this fine-grained token does not reach gated repositories"
    if request is None:
        return f"ask to be let in on its page, /{repo.full_name}"
    if request.status == "rejected":
        return "its owner refused your request" + (f": {request.reason}" if request.reason else "")
    return "your request waits for its owner's answer"


def _caller(session: Session, condition: ColumnElement[bool]) -> Caller:
    found = session.exec(
        select(Token, Account).join(Account, col(Account.id) == col(Token.account_id)).where(condition)
    ).first()
    if found is None:
        raise InvalidToken("Invalid credentials in Authorization header")
    token, account = found
    if token.revoked_at or account.disabled_at or (token.expires_at and token.expires_at <= now()):
        raise InvalidToken("Invalid credentials in Authorization header: the token expired or was revoked")
    is_admin = account.is_admin and token.role == "admin"
    if token.role != FINE_GRAINED:
        return Caller(account.id, account.name, is_admin, token.id, token.role)
    rows = session.exec(select(TokenScope).where(TokenScope.token_id == token.id))
    scopes = frozenset((row.permission, row.entity_id) for row in rows)
    return Caller(account.id, account.name, False, token.id, token.role, scopes, token.reads_gated)


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


def _role(session: Session, caller: Caller, on: Repository | str) -> str | None:
    """The caller's role in an account or for a repository: admin in their own, as a member in an organisation.

    A contributor may write to the repositories that they made themselves. Whoever belongs to an organisation to whom a
    mirror is shown may read it.
    """
    if caller.account_id is None:
        return None
    owner_id = on if isinstance(on, str) else on.owner_id
    if caller.account_id == owner_id:
        return "admin"
    member = session.get(Membership, (owner_id, caller.account_id))
    role = member.role if member else None
    if role is None and isinstance(on, Repository) and _organisations_shown(session, caller, on):
        return "read"
    if role == "contributor" and isinstance(on, Repository) and on.creator_id == caller.account_id:
        return "write"
    return role
