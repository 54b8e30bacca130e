"""Large files for git-lfs: links to read one, signed for one repository, digest and size."""

from dataclasses import dataclass

from sqlmodel import Session

from adapterhub.hub.context import Hub
from adapterhub.hub.db.tables import Mirror, Repository
from adapterhub.hub.errors import EntryNotFound, InvalidToken
from adapterhub.hub.services import blobs, mirror_files
from adapterhub.hub.services.access import Caller, require_content
from adapterhub.hub.services.signing import seal, unseal
from adapterhub.hub.services.trees import Entry
from adapterhub.storage.blobs import check_digest

LINK_TTL_S = 6 * 3600
"""git-lfs asks for a hundred links at once, and fetches one file after another."""

_PURPOSE = "download link"


@dataclass(frozen=True)
class Linked:
    """A large file of a repository. commit: one that holds it, where `is_absent`: a mirror's, its bytes not here."""

    repo: Repository
    commit: str
    entry: Entry
    is_absent: bool


def link(session: Session, hub: Hub, caller: Caller, repo: Repository, digest: str) -> tuple[str, int]:
    """The signature of a link to read those bytes of `repo`, and how many they are.

    Raises RepoNotFound, GatedRepo, InvalidDigest; EntryNotFound for bytes that the repository does not have, whoever
    else may have them, and for those that would have to be fetched for a caller without a token.
    """
    require_content(session, caller, repo)
    found = _find(session, repo, check_digest(digest))
    is_for_all = not caller.is_anonymous or hub.settings.mirror_anonymous
    if found is None or (found.is_absent and not is_for_all):
        raise EntryNotFound(repo.full_name, digest, "")
    claims = {"repo": repo.id, "digest": digest}
    return seal(hub.secret, _PURPOSE, claims, LINK_TTL_S), found.entry.size_bytes


def linked(session: Session, hub: Hub, signature: str, digest: str) -> Linked:
    """The file that the link with that signature lets its bearer read.

    Raises InvalidToken when it is not for `digest`, false or expired, or the repository lost the bytes.
    """
    claims = unseal(hub.secret, _PURPOSE, signature)
    repo = session.get(Repository, claims["repo"])
    is_its = repo is not None and repo.deleted_at is None and claims["digest"] == digest
    found = _find(session, repo, check_digest(digest)) if repo is not None and is_its else None
    if found is None:
        raise InvalidToken("this download link is for another file, or for one that is gone; ask for another")
    return found


def _find(session: Session, repo: Repository, digest: str) -> Linked | None:
    present = blobs.owned(session, repo.id, digest)
    if present is not None:
        entry = Entry(digest.removeprefix("sha256:"), "", present.size_bytes, digest, is_lfs=True)
        return Linked(repo, "", entry, is_absent=False)
    place = mirror_files.place_of(session, repo, digest) if session.get(Mirror, repo.id) else None
    return Linked(repo, *place, is_absent=True) if place and place[1].is_lfs else None
