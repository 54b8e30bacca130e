"""One repository of the server as an import writes it: the Hugging Face dialect's public routes and nothing else.

Large files go through git-lfs "basic" links, which take a stream: no file is ever whole in memory or on disk here.
Source: huggingface_hub/_commit_api.py, lfs.py; git-lfs docs/api/batch.md.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from adapterhub.cli.client import Client, repo_path
from adapterhub.cli.errors import CliError
from adapterhub.cli.source import SourceFailed

if TYPE_CHECKING:
    import httpx

SAMPLE_BYTES = 512
_BODY_IN_MEMORY_BYTES = 8 << 20
_TRANSFER_TIMEOUT_S = 600.0
_REF_EXISTS = "RefExists"

Names = frozenset[str]
"""Names of one content: "sha256:<hex>", git's id, or both."""


@dataclass(frozen=True)
class Content:
    """A file that may have to travel. read: its bytes in pieces, from the start at each call."""

    path: str
    size_bytes: int
    digest: str
    sample: bytes
    read: Callable[[], Iterator[bytes]]
    is_large: bool | None = None
    """Whether git is to hold a pointer; None leaves it to the server."""
    oid: str | None = None

    @property
    def names(self) -> Names:
        """All names of the content that are known."""
        return frozenset(filter(None, (self.digest, self.oid)))


@dataclass(frozen=True)
class CommitSeen:
    """One commit of the server's. message: title and description."""

    oid: str
    message: str


class Target:
    """A repository of the server, existing or not."""

    def __init__(self, client: Client, http: httpx.Client, repo_id: str) -> None:
        self.client = client
        self._http = http
        self._name(repo_id)

    def exists(self) -> bool:
        """Whether there is such a repository that the token may see; one that was renamed is found by its old name."""
        response = self._http.get(self._api)
        if response.is_success:
            self._name(str(response.json()["id"]))
        return response.is_success

    def create(self, *, is_private: bool) -> None:
        """Make the repository, hidden from its first moment where it is to be hidden."""
        namespace, _, name = self.repo_id.partition("/")
        visibility = "private" if is_private else "public"
        self._ask("POST", "/api/repos/create", {"name": name, "organization": namespace, "visibility": visibility})

    def close(self, *, is_private: bool, gated: str | None) -> None:
        """Hide the repository and gate its files where they are to be; neither is undone."""
        wanted = ({"visibility": "private"} if is_private else {}) | ({"gated": gated} if gated else {})
        if wanted:
            self._ask("PUT", f"{self._api}/settings", wanted)

    def refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """The commits of branches, and of tags, by name."""
        told = self._ask("GET", f"{self._api}/refs")
        branches, tags = ({ref["name"]: ref["targetCommit"] for ref in told[key]} for key in ("branches", "tags"))
        return branches, tags

    def history(self, revision: str) -> list[CommitSeen]:
        """The commits that lead to `revision`, newest first."""
        pages = self._pages(f"{self._api}/commits/{quote(revision, safe='')}?limit=1000")
        return [CommitSeen(one["id"], f"{one['title']}\n\n{one['message']}") for one in pages]

    def files(self, revision: str) -> dict[str, Names]:
        """The names of each file's content at `revision`, by path."""
        pages = self._pages(f"{self._api}/tree/{quote(revision, safe='')}?recursive=true")
        return {one["path"]: _names(one) for one in pages if one["type"] == "file"}

    def create_branch(self, name: str, start: str) -> None:
        """Make a branch; one that is there already stays as it is."""
        self._create_ref(f"{self._api}/branch/{quote(name, safe='')}", {"startingPoint": start})

    def delete_branch(self, name: str) -> None:
        self._ask("DELETE", f"{self._api}/branch/{quote(name, safe='')}")

    def create_tag(self, name: str, commit: str) -> None:
        """Make a tag; one that is there already stays as it is."""
        self._create_ref(f"{self._api}/tag/{commit}", {"tag": name})

    def modes(self, branch: str, contents: Sequence[Content]) -> dict[str, bool]:
        """Whether each file is a large one, by path, as the server would have it."""
        files = [{"path": c.path, "size": c.size_bytes, "sample": _base64(c.sample)} for c in contents]
        told = self._ask("POST", f"{self._api}/preupload/{quote(branch, safe='')}", {"files": files})
        return {file["path"]: file["uploadMode"] == "lfs" for file in told["files"]}

    def send_large(self, contents: Sequence[Content], seen: Callable[[str, int], None]) -> set[str]:
        """Send those of the files that the repository does not have; digests of what was sent."""
        by_oid = {c.digest.removeprefix("sha256:"): c for c in contents}
        objects = [{"oid": oid, "size": c.size_bytes} for oid, c in by_oid.items()]
        asked = {"operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
        told = self._ask("POST", f"/{quote(self.repo_id)}.git/info/lfs/objects/batch", asked)
        sent = set()
        for one in told["objects"]:
            content = by_oid[one["oid"]]
            if "error" in one:
                raise CliError(f"{content.path}: {one['error']['message']}")
            if "actions" in one:
                self._put(content, one["actions"]["upload"], seen)
                sent.add(content.digest)
        return sent

    def commit(self, branch: str, draft: Draft, message: tuple[str, str], parent: str) -> str:
        """The branch's head after the commit; the parent itself when nothing changed."""
        header = {"summary": message[0], "description": message[1], "parentCommit": parent}
        body = draft.body(header)
        told = self._ask("POST", f"{self._api}/commit/{quote(branch, safe='')}", content=body)
        return str(told["commitOid"])

    def _name(self, repo_id: str) -> None:
        self.repo_id = repo_id
        self._api = "/api/models/" + repo_path(repo_id).removeprefix("/api/patches/")

    def _put(self, content: Content, action: Mapping[str, Any], seen: Callable[[str, int], None]) -> None:
        import httpx

        def pieces() -> Iterator[bytes]:
            for piece in content.read():
                seen(content.path, len(piece))
                yield piece

        # the link is a right by itself and may lead elsewhere: the token does not go along
        headers = {"Content-Length": str(content.size_bytes), **action.get("header", {})}
        try:
            response = httpx.put(action["href"], content=pieces(), headers=headers, timeout=_TRANSFER_TIMEOUT_S)
        except httpx.LocalProtocolError as error:
            raise SourceFailed(f"{content.path}: not the {content.size_bytes} bytes that were announced") from error
        if response.is_error:
            raise self.client.refusal(response)

    def _create_ref(self, path: str, body: Mapping[str, str]) -> None:
        response = self._http.post(path, json=body)
        if response.is_error and response.headers.get("X-Error-Code") != _REF_EXISTS:
            raise self.client.refusal(response)

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        while path:
            response = self._http.get(path)
            if response.is_error:
                raise self.client.refusal(response)
            yield from response.json()
            # a proxy may call the server otherwise than we do; the query is all that counts
            following = response.links.get("next", {}).get("url", "").partition("?")[2]
            path = f"{path.partition('?')[0]}?{following}" if following else ""

    def _ask(self, method: str, path: str, body: Any = None, content: Iterable[bytes] | None = None) -> Any:
        response = self._http.request(method, path, json=body, content=content)
        if response.is_error:
            raise self.client.refusal(response)
        return response.json() if response.content else None


class Draft:
    """The operations of one commit, gathered in a temporary file."""

    def __init__(self) -> None:
        self._lines = tempfile.SpooledTemporaryFile(max_size=_BODY_IN_MEMORY_BYTES)  # noqa: SIM115
        self.is_empty = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lines.close()

    def add(self, path: str, content: bytes) -> None:
        """A file that travels inside the commit."""
        self._add("file", {"path": path, "content": _base64(content), "encoding": "base64"})

    def add_large(self, path: str, digest: str, size_bytes: int) -> None:
        """A file that the repository has been sent before."""
        oid = digest.removeprefix("sha256:")
        self._add("lfsFile", {"path": path, "algo": "sha256", "oid": oid, "size": size_bytes})

    def delete(self, path: str) -> None:
        self._add("deletedFile", {"path": path})

    def body(self, header: Mapping[str, str]) -> Iterator[bytes]:
        """The commit's body, one object a line."""
        yield _line("header", header)
        self._lines.seek(0)
        while piece := self._lines.read(1 << 20):
            yield piece

    def _add(self, key: str, value: Mapping[str, Any]) -> None:
        self.is_empty = False
        self._lines.write(_line(key, value))


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    return json.dumps({"key": key, "value": value}).encode() + b"\n"


def _names(entry: Mapping[str, Any]) -> Names:
    return frozenset({f"sha256:{entry['lfs']['oid']}"} if entry.get("lfs") else {entry["oid"]})


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
