"""Large files by their sha256: who may upload one, and the link that lets them.

A link is signed for one repository, digest and size. Its bearer needs no token, as clients send none with the bytes.
"""

from dataclasses import dataclass

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import InvalidRequest, InvalidToken, TooLarge
from adapterhub.hub.services import blobs
from adapterhub.hub.services.access import Caller, require_upload
from adapterhub.hub.services.signing import seal, unseal
from adapterhub.storage.blobs import BlobStat, BlobWriter, check_digest

LINK_TTL_S = 24 * 3600
"""A client signs on for all files of a folder at once, and sends them one after another."""

_PURPOSE = "upload link"


@dataclass(frozen=True)
class Ticket:
    """What a link allows: to store these bytes for this repository."""

    repository_id: str
    digest: str
    size_bytes: int


def wanted(session: Session, hub: Hub, caller: Caller, repo: Repository, digest: str, size_bytes: int) -> Ticket | None:
    """What `caller` needs to upload those bytes to `repo`, None when it has them.

    Bytes that only other repositories have are asked for all the same: naming a digest proves no possession. Raises
    NotAuthenticated, Forbidden, InvalidDigest, InvalidRequest, TooLarge.
    """
    require_upload(session, caller, repo)
    check_digest(digest)
    if size_bytes > hub.settings.file_max_bytes:
        raise TooLarge(f"{digest}: {size_bytes} bytes, at most {hub.settings.file_max_bytes} are taken")
    present = blobs.owned(session, repo.id, digest)
    if present is None:
        return Ticket(repo.id, digest, size_bytes)
    if present.size_bytes != size_bytes:
        raise InvalidRequest(f"{digest} has {present.size_bytes} bytes, not {size_bytes}")
    return None


def sign(hub: Hub, allowed: Ticket) -> str:
    """The signature of the link that allows this."""
    claims = {"repo": allowed.repository_id, "digest": allowed.digest, "size": allowed.size_bytes}
    return seal(hub.secret, _PURPOSE, claims, LINK_TTL_S)


def ticket(hub: Hub, signature: str, digest: str) -> Ticket:
    """What the link with that signature allows. Raises InvalidToken when it is not for `digest`, false or expired."""
    claims = unseal(hub.secret, _PURPOSE, signature)
    if claims["digest"] != digest:
        raise InvalidToken("this upload link is for another file; ask for another")
    return Ticket(claims["repo"], claims["digest"], claims["size"])


def store(hub: Hub, allowed: Ticket, writer: BlobWriter) -> BlobStat:
    """Make what `writer` took durable and give the repository the right to it.

    Raises DigestMismatch, and keeps nothing, when the bytes are not those of the ticket.
    """
    stat = writer.commit(allowed.digest)
    hub.db.transact(lambda session: blobs.record(session, allowed.repository_id, [stat], store=hub.store))
    return stat


def is_stored(session: Session, repo: Repository, digest: str, size_bytes: int) -> bool:
    """Whether `repo` has the right to those bytes, and they are that many."""
    present = blobs.owned(session, repo.id, check_digest(digest))
    return present is not None and present.size_bytes == size_bytes
