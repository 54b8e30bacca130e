"""Another hub as this one reads it: the Hugging Face dialect, asked through `outbound`.

Nothing it says is believed further than it goes: names, ids and sizes are checked here, bytes by who fetches them.
Source: huggingface_hub/hf_api.py model_info, list_repo_refs; file_download.py for what a refusal means.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from adapterhub.hub.db.tables import now
from adapterhub.hub.errors import (
    EntryNotFound,
    Forbidden,
    GatedRepo,
    HubError,
    InvalidPath,
    OutboundFailed,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
    WrongUpstream,
)
from adapterhub.hub.services import outbound
from adapterhub.hub.services.names import check_path, is_storable
from adapterhub.hub.services.refs import BRANCH, TAG
from adapterhub.hub.services.trees import Entry
from adapterhub.hub.settings import Settings

FILES = 10_000
"""Most files of one revision."""

ANSWER_BYTES = 32 << 20
"""Longest answer that is no file."""

ANSWER_S = 60.0
"""How long such an answer may take in all."""

_OID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Upstream:
    """One repository of another hub. url: of the hub, without a slash at its end.

    token: as whom it is asked, sent to that hub's own origin and nowhere else; organisation_id: whose token that is.
    """

    settings: Settings
    url: str
    repo_id: str
    token: str | None = field(default=None, repr=False)
    organisation_id: str | None = None

    @property
    def host(self) -> str:
        """Its name, for people."""
        return urlsplit(self.url).netloc

    def revision(self, revision: str) -> "RemoteRevision":
        """What a branch, tag or commit is there now.

        Raises RepoNotFound, RevisionNotFound, GatedRepo, Forbidden as the other hub answers; OutboundFailed where it
        does not; WrongUpstream for an answer that does not hold together; TooLarge above FILES files.
        """
        found = self._json(f"/api/models/{self.repo_id}/revision/{quote(revision, safe='')}?blobs=true", revision)
        siblings = found.get("siblings")
        if not isinstance(siblings, list):
            raise self.wrong("names no files")
        if len(siblings) > FILES:
            raise TooLarge(f"{self.repo_id} of {self.host}: {len(siblings)} files; at most {FILES} are mirrored")
        commit, name = str(found.get("sha")), str(found.get("id"))
        if not _OID.fullmatch(commit):
            raise self.wrong(f"calls {commit[:60]!r} a commit")
        if _OID.fullmatch(revision) and commit != revision:
            raise self.wrong(f"answers with commit {commit} where {revision} was asked for")
        files = tuple(self._entry(one) for one in siblings)
        if len({file.path for file in files}) != len(files):
            raise self.wrong("names a file twice")
        full_name = name if name.casefold() == self.repo_id.casefold() else self.repo_id
        return RemoteRevision(full_name, commit, files, _time(found.get("lastModified")))

    def ref_name(self, revision: str, commit: str) -> str | None:
        """The ref in full that `revision` names there; None where it is the beginning of a commit's id."""
        if commit.startswith(revision):
            return None
        if revision == "main" or revision.startswith("refs/"):
            return revision if revision.startswith("refs/") else BRANCH + revision
        tags = self._json(f"/api/models/{self.repo_id}/refs", revision).get("tags")
        names = {one.get("name") for one in tags if isinstance(one, dict)} if isinstance(tags, list) else set()
        return (TAG if revision in names else BRANCH) + revision

    @contextmanager
    def open(
        self, commit: str, path: str, start: int, end: int, *, deadline_s: float | None = None
    ) -> Iterator[Iterator[bytes]]:
        """The bytes of a file from `start` on, up to `end` and perhaps one more, as they come.

        deadline_s: for all of them, None for as long as they come. Raises as `revision`, and EntryNotFound.
        """
        url = f"{self.url}/{self.repo_id}/resolve/{commit}/{quote(path)}"
        wanted = {"Range": f"bytes={start}-{end - 1}"} if start or end else {}
        headers = {**wanted, **self._as_whom()}
        with outbound.request(
            self.settings, "GET", url, headers=headers, limit_bytes=end + 1, deadline_s=deadline_s
        ) as response:
            if response.status == 206:
                if not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
                    raise self.wrong(f"sends another part of {path} than was asked for")
                yield response.iter_bytes()
            elif response.status == 200:
                yield _from(response.iter_bytes(), start)
            else:
                raise self._refusal(response, commit, path)

    def wrong(self, what: str) -> WrongUpstream:
        """The error that says what the other hub got wrong about the repository."""
        return WrongUpstream(f"{self.host} {what}, for {self.repo_id}; nothing of it is kept")

    def missing(self) -> RepoNotFound:
        """The error that says that the repository is nowhere, or is not shown to who asks."""
        return RepoNotFound(self.repo_id, f"neither here nor, for this service, at {self.host}")

    def _as_whom(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _json(self, path: str, revision: str) -> Mapping[str, Any]:
        with outbound.request(
            self.settings,
            "GET",
            self.url + path,
            headers=self._as_whom(),
            limit_bytes=ANSWER_BYTES,
            deadline_s=ANSWER_S,
        ) as response:
            if response.status != 200:
                raise self._refusal(response, revision, "")
            try:
                found = json.loads(response.read())
            except ValueError:
                raise self.wrong("answers with something that is no JSON") from None
        if not isinstance(found, dict):
            raise self.wrong("answers with something that is no JSON object")
        return found

    def _entry(self, sibling: Any) -> Entry:
        """A file as the list of the other hub has it; the digest of a regular one is not told there, and "" here."""
        shape = sibling if isinstance(sibling, dict) else {}
        path, size, oid, lfs = (shape.get(name) for name in ("rfilename", "size", "blobId", "lfs"))
        large = lfs if isinstance(lfs, dict) else {}
        sha256 = str(large.get("sha256") or large.get("oid") or "")
        size = large.get("size", size)
        try:
            check_path(str(path))
        except InvalidPath as error:
            raise self.wrong(f"names a file that cannot be kept ({error})") from None
        if not isinstance(size, int) or size < 0 or not _OID.fullmatch(str(oid)):
            raise self.wrong(f"tells no size or id of {path}")
        if large and not _SHA256.fullmatch(sha256):
            raise self.wrong(f"tells no sha256 of {path}")
        return Entry(str(path), str(oid), size, f"sha256:{sha256}" if large else "", is_lfs=bool(large))

    def _refusal(self, response: outbound.Response, revision: str, path: str) -> HubError:
        """What the other hub's refusal is for our own client: the same, in the class that it knows."""
        code, status = response.headers.get("x-error-code", ""), response.status
        if code == "GatedRepo":
            return GatedRepo(self.repo_id, f"ask for access at {self.url}/{self.repo_id}")
        if code == "RevisionNotFound":
            return RevisionNotFound(self.repo_id, revision)
        if code == "EntryNotFound" or (status == 404 and path and code != "RepoNotFound"):
            return EntryNotFound(self.repo_id, path, revision)
        if self.token and status == 401 and code != "RepoNotFound":
            return RepoNotFound(self.repo_id, f"{self.host} does not accept your organisation's token; set another one")
        if status in (401, 404):
            return self.missing()
        if status == 403:
            return Forbidden(f"{self.repo_id}: {self.host} refuses it to this service")
        return OutboundFailed(f"{self.repo_id}: {self.host} answers with status {status}; try again later")


@dataclass(frozen=True)
class RemoteRevision:
    """A commit of another hub. full_name: as it is spelled there; files: regular ones without their digest."""

    full_name: str
    commit: str
    files: tuple[Entry, ...]
    committed_at: datetime


def _from(pieces: Iterator[bytes], start: int) -> Iterator[bytes]:
    """The pieces without their first `start` bytes."""
    for piece in pieces:
        if start < len(piece):
            yield piece[start:]
        start = max(0, start - len(piece))


def _time(text: Any) -> datetime:
    """A time with zone, in whole seconds; the present one where it is not told."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) and is_storable(text) else None
    except ValueError:
        found = None
    return (found if found is not None and found.tzinfo else now()).replace(microsecond=0)
