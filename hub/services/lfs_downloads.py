"""Large files for git-lfs: links to read one, signed for one repository, digest and size."""

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Repository
from adapterhub.hub.errors import EntryNotFound, InvalidToken
from adapterhub.hub.services import blobs
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.signing import seal, unseal
from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import check_digest

LINK_TTL_S = 6 * 3600
"""git-lfs asks for a hundred links at once, and fetches one file after another."""

_PURPOSE = "download link"


def link(session: Session, hub: Hub, caller: Caller, repo: Repository, digest: str) -> tuple[str, int]:
    """The signature of a link to read those bytes of `repo`, and how many they are.

    Raises RepoNotFound, GatedRepo, InvalidDigest; EntryNotFound for bytes that the repository does not have, whoever
    else may have them.
    """
    require_content(session, caller, repo)
    present = blobs.owned(session, repo.id, check_digest(digest))
    if present is None:
        raise EntryNotFound(repo.full_name, digest, "")
    claims = {"repo": repo.id, "digest": digest}
    return seal(hub.secret, _PURPOSE, claims, LINK_TTL_S), present.size_bytes


def linked(session: Session, hub: Hub, signature: str, digest: str) -> Entry:
    """The file that the link with that signature lets its bearer read.

    Raises InvalidToken when it is not for `digest`, false or expired, or the repository lost the bytes.
    """
    claims = unseal(hub.secret, _PURPOSE, signature)
    repo = session.get(Repository, claims["repo"])
    present = blobs.owned(session, claims["repo"], check_digest(digest)) if claims["digest"] == digest else None
    if repo is None or repo.deleted_at is not None or present is None:
        raise InvalidToken("this download link is for another file, or for one that is gone; ask for another")
    return Entry(digest.removeprefix("sha256:"), "", present.size_bytes, digest, is_lfs=True)
