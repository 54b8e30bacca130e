"""hf: repositories of a hub that speaks the Hugging Face protocol, with branches, tags, history and flags.

The upstream is asked by an HfApi of its own with the upstream's token or none: the token of the hub that is imported
into never goes there. Files are read through `/resolve/<commit>`; a redirect to another host carries no token.
Source: huggingface_hub/hf_api.py list_repo_refs, list_repo_commits, list_repo_tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adapterhub.cli.errors import CliError, Missing, Misused
from adapterhub.cli.source import (
    PIECE_BYTES,
    Item,
    Skipped,
    SourceCommit,
    SourceFailed,
    SourceFile,
    SourceKind,
    SourceRef,
    Wishes,
)

if TYPE_CHECKING:
    import httpx
    from huggingface_hub.hf_api import GitCommitInfo

TIMEOUT_S = 60.0
DEFAULT_BRANCH = "main"


class HfSource:
    """A namespace, or one repository, of an upstream hub."""

    def __init__(self, place: str, wishes: Wishes) -> None:
        from huggingface_hub import HfApi

        if not all(place.split("/")) or place.count("/") > 1:
            raise Misused(f"hf:{place}: write hf:ORGANISATION or hf:ORGANISATION/NAME")
        self._place = place
        self._upstream = wishes.upstream.rstrip("/")
        self._token = wishes.upstream_token
        self._http: httpx.Client | None = None
        self._api = HfApi(endpoint=self._upstream, token=wishes.upstream_token or False)

    def items(self) -> Iterator[Item | Skipped]:
        if "/" in self._place:
            yield self._item(self._place)
            return
        with self._translated():
            names = sorted(model.id for model in self._api.list_models(author=self._place))
        if not names:
            hint = "" if self._token else "; private ones are shown to --upstream-token only"
            raise Missing(f"hf:{self._place}: {self._upstream} shows no model of that owner{hint}")
        for name in names:
            try:
                item: Item | Skipped = self._item(name)
            except CliError as error:
                item = Skipped(name, str(error), is_fault=True)
            yield item

    def refs(self, item: Item) -> Sequence[SourceRef]:
        repo_id = _repo_id(item)
        with self._translated():
            told = self._api.list_repo_refs(repo_id)
            names = sorted((ref.name for ref in told.branches), key=lambda name: (name != DEFAULT_BRANCH, name))
            found = [SourceRef(name, self._history(repo_id, name)) for name in names]
            known = {one.key: ref.commits[: at + 1] for ref in found for at, one in enumerate(ref.commits)}
            for tag in told.tags:
                commits = known.get(tag.target_commit) or self._history(repo_id, tag.name)
                found.append(SourceRef(tag.name, commits, is_tag=True))
        return found

    def files(self, item: Item, commit: SourceCommit) -> Sequence[SourceFile]:
        with self._translated():
            tree: Iterator[Any] = iter(self._api.list_repo_tree(_repo_id(item), recursive=True, revision=commit.key))
            return [_file(entry) for entry in tree if hasattr(entry, "blob_id")]

    def read(
        self, item: Item, commit: SourceCommit, file: SourceFile, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        import httpx

        if self._http is None:
            self._http = httpx.Client(follow_redirects=True, timeout=TIMEOUT_S)
        url = f"{self._upstream}/{_repo_id(item)}/resolve/{commit.key}/{quote(file.path)}"
        stop = file.size_bytes if end is None else end
        is_part = start > 0 or stop < file.size_bytes
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-{stop - 1}"} if is_part else {})
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                if response.is_error:
                    told = response.headers.get("X-Error-Message") or f"answers {response.status_code}"
                    raise SourceFailed(f"{_repo_id(item)}/{file.path}: {self._upstream}: {told}")
                if is_part and response.status_code != httpx.codes.PARTIAL_CONTENT:
                    raise SourceFailed(f"{_repo_id(item)}/{file.path}: {self._upstream} sends no parts of files")
                yield from response.iter_bytes(PIECE_BYTES)
        except httpx.HTTPError as error:
            raise SourceFailed(f"{url}: {error or type(error).__name__}") from error

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def _item(self, repo_id: str) -> Item:
        with self._translated():
            model = self._api.model_info(repo_id)
        namespace, _, name = model.id.rpartition("/")
        return Item(name, f"hf:{model.id}", namespace or None, bool(model.private), model.gated or None)

    def _history(self, repo_id: str, revision: str) -> list[SourceCommit]:
        """The commits that lead to `revision`, oldest first."""
        return [_commit(one) for one in reversed(self._api.list_repo_commits(repo_id, revision=revision))]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own, by whatever name

        try:
            yield
        except RepositoryNotFoundError as error:
            hint = "" if self._token else "; for one that is private, give --upstream-token"
            raise Missing(f"hf:{self._place}: no such repository at {self._upstream}{hint}") from error
        except HfHubHTTPError as error:
            told = error.server_message or str(error).splitlines()[0]
            raise SourceFailed(f"hf:{self._place}: {self._upstream}: {told}") from error
        except HFValidationError as error:
            raise Misused(f"hf:{self._place}: {error}") from error
        except (httpx.HTTPError, ConnectionError) as error:
            raise SourceFailed(f"{self._upstream} does not answer: {error or type(error).__name__}") from error


def _repo_id(item: Item) -> str:
    return item.origin.removeprefix("hf:")


def _commit(one: GitCommitInfo) -> SourceCommit:
    return SourceCommit(one.commit_id, one.title, one.message, ", ".join(one.authors), one.created_at.isoformat())


def _file(entry: Any) -> SourceFile:
    if entry.lfs is None:
        return SourceFile(entry.path, entry.size, oid=entry.blob_id)
    return SourceFile(entry.path, entry.size, digest=f"sha256:{entry.lfs.sha256}", is_large=True)


SPEC = SourceKind("hf", "A hub that speaks the Hugging Face protocol", "hf:ORGANISATION/NAME", HfSource)
