"""mlflow: the models of an MLflow model registry, each version a commit with the tag v1, v2, ...

Aliases become branches of their names, and so do stages that no alias is called by. What the registry says of a model
and of each version becomes its card. Artifacts are read through the server's own artifact route; of s3: and file:
addresses only with --follow-uris, as they would be read with the rights of whoever runs the command.
MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, are sent to that server alone.
Source: MLflow's REST API, registered-models/search, model-versions/search, get-download-uri, mlflow-artifacts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from adapterhub.cli.bucket import BucketTree
from adapterhub.cli.disk import LocalTree
from adapterhub.cli.errors import Declined, Missing, Misused
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
from adapterhub.cli.trees import CARD, Leaf, Tree, reason_to_skip, repo_name
from adapterhub.merging.folders import is_inside, join

if TYPE_CHECKING:
    import httpx

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PROXIED = "mlflow-artifacts"
OTHER_CARD = "MLFLOW.md"
"""The card's name where the artifacts have a README.md of their own."""

PAGE_ITEMS = 100
TIMEOUT_S = 60.0

Json = Mapping[str, Any]


class Registry:
    """The REST API of one MLflow server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._headers, self._auth = _credentials()

    def pages(self, path: str, key: str, **query: str) -> Iterator[Json]:
        """Every item of a list."""
        token = ""
        while True:
            asked = query | {"max_results": str(PAGE_ITEMS)} | ({"page_token": token} if token else {})
            page = self.get(f"{API}/{path}", asked)
            yield from page.get(key, [])
            token = page.get("next_page_token") or ""
            if not token:
                return

    def get(self, path: str, query: Mapping[str, str]) -> Json:
        """The JSON at a path. Raises Missing, SourceFailed."""
        with self.stream(path, query) as response:
            try:
                told: Json = json.loads(response.read())
            except ValueError as error:
                raise SourceFailed(f"{self.url}: answers with something that is no JSON; is it MLflow?") from error
            return told

    @contextmanager
    def stream(
        self, path: str, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read. Raises Missing, SourceFailed."""
        import httpx

        sent = {**self._headers, **(headers or {})}
        try:
            with httpx.stream(
                "GET", self.url + path, params=query, headers=sent, auth=self._auth, timeout=TIMEOUT_S
            ) as response:
                if response.status_code != httpx.codes.OK and response.status_code != httpx.codes.PARTIAL_CONTENT:
                    response.read()
                    raise _refusal(self.url, response)
                yield response
        except httpx.HTTPError as error:
            raise SourceFailed(f"{self.url} does not answer: {error or type(error).__name__}") from error


class ProxiedTree:
    """The artifacts below a path, as the server's artifact route shows them."""

    def __init__(self, registry: Registry, root: str) -> None:
        self._registry = registry
        self._root = root.strip("/")
        self.label, self.name = f"{PROXIED}:/{self._root}", self._root.rpartition("/")[2]

    def leaves(self) -> tuple[Sequence[Leaf], Sequence[Skipped]]:
        leaves: list[Leaf] = []
        skipped: list[Skipped] = []
        pending = [""]
        while pending:
            folder = pending.pop()
            told = self._registry.get(ARTIFACTS, {"path": join(self._root, folder) if folder else self._root})
            for one in told.get("files", []):
                path = join(folder, str(one["path"]))
                reason = reason_to_skip(path) if is_inside(path) else "its name is no path of a file"
                if reason:
                    skipped.append(Skipped(path, reason))
                elif one.get("is_dir"):
                    pending.append(path)
                else:
                    leaves.append(Leaf(path, int(one["file_size"]), ""))
        return sorted(leaves, key=lambda leaf: leaf.path), skipped

    def read(self, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        is_part = start > 0 or end is not None
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if is_part else {}
        with self._registry.stream(f"{ARTIFACTS}/{quote(join(self._root, path))}", headers=headers) as response:
            # older servers know no ranges and send the whole
            at = start if response.status_code == 206 else 0
            for piece in response.iter_bytes(PIECE_BYTES):
                wanted = piece[max(0, start - at) : None if end is None else max(0, end - at)]
                at += len(piece)
                if wanted:
                    yield wanted
                if end is not None and at >= end:
                    return


class MlflowSource:
    """The registered models of one server, or the one that "#NAME" at the end of its URL names."""

    def __init__(self, place: str, wishes: Wishes) -> None:
        url, _, only = place.partition("#")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise Misused(f"mlflow:{place}: write mlflow:http://HOST:PORT, or mlflow:http://HOST:PORT#MODEL")
        if urlsplit(url).username:
            raise Misused("mlflow: put credentials into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        self._registry = Registry(url)
        self._only = unquote(only)
        self._follow_uris = wishes.follow_uris
        self._models: dict[str, Json] = {}
        self._versions: dict[str, dict[str, Json]] = {}
        self._trees: dict[tuple[str, str], tuple[Tree, dict[str, Leaf]]] = {}

    def items(self) -> Iterator[Item | Skipped]:
        wanted = {"filter": _named(self._only)} if self._only else {}
        found = list(self._registry.pages("registered-models/search", "registered_models", **wanted))
        if not found:
            raise Missing(f"{self._registry.url}: no registered model{f' {self._only}' if self._only else ''}")
        for model in found:
            name = str(model["name"])
            origin = f"mlflow:{self._registry.url}#{quote(name)}"
            told = self._registry.pages("model-versions/search", "model_versions", filter=_named(name))
            versions = sorted(told, key=lambda one: int(one["version"]))
            unready = [one for one in versions if one.get("status", "READY") != "READY"]
            self._models[origin] = model
            self._versions[origin] = {f"v{one['version']}": one for one in versions if one not in unready}
            skipped = [Skipped(f"v{one['version']}", f"its status is {one['status']}") for one in unready]
            if self._versions[origin]:
                yield Item(repo_name(name), origin, skipped=skipped)
            else:
                yield Skipped(name, "has no version that is ready")

    def refs(self, item: Item) -> Sequence[SourceRef]:
        versions = self._versions[item.origin]
        commits = [_commit(item, key, one) for key, one in versions.items()]
        upto = {commit.key: commits[: at + 1] for at, commit in enumerate(commits)}
        branches = {_stage(one): key for key, one in versions.items() if _stage(one)}
        branches |= {str(one["alias"]): f"v{one['version']}" for one in self._models[item.origin].get("aliases", [])}
        refs = [SourceRef("main", commits)]
        refs += [SourceRef(name, upto[key]) for name, key in sorted(branches.items()) if key in upto and name != "main"]
        return refs + [SourceRef(key, here, is_tag=True) for key, here in upto.items()]

    def files(self, item: Item, commit: SourceCommit) -> Sequence[SourceFile]:
        _, leaves = self._tree(item, commit)
        found = [SourceFile(path, leaf.size_bytes) for path, leaf in leaves.items()]
        return [*found, SourceFile(_card_name(leaves), len(self._card(item, commit)))]

    def read(
        self, item: Item, commit: SourceCommit, file: SourceFile, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        tree, leaves = self._tree(item, commit)
        if file.path == _card_name(leaves):
            return iter((self._card(item, commit)[start:end],))
        return tree.read(file.path, start, end)

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _tree(self, item: Item, commit: SourceCommit) -> tuple[Tree, dict[str, Leaf]]:
        key = (item.origin, commit.key)
        if key not in self._trees:
            version = self._versions[item.origin][commit.key]
            asked = {"name": str(version["name"]), "version": str(version["version"])}
            uri = str(self._registry.get(f"{API}/model-versions/get-download-uri", asked)["artifact_uri"])
            tree = self._open(uri)
            self._trees[key] = tree, {leaf.path: leaf for leaf in tree.leaves()[0]}
        return self._trees[key]

    def _open(self, uri: str) -> Tree:
        """The artifacts at an address. Raises Declined for one that is not to be followed."""
        parts = urlsplit(uri)
        if parts.scheme == PROXIED and parts.netloc in ("", urlsplit(self._registry.url).netloc):
            return ProxiedTree(self._registry, unquote(parts.path))
        if parts.scheme not in ("s3", "file", "") or (parts.netloc and parts.scheme == "file"):
            raise Declined(f"{uri}: artifacts at such an address cannot be read from here")
        if not self._follow_uris:
            raise Declined(f"{uri}: outside the MLflow server; --follow-uris reads it with your rights")
        if parts.scheme == "s3":
            return BucketTree(uri.removeprefix("s3:"))
        root = Path(unquote(parts.path))
        if not root.is_dir():
            raise Missing(f"{uri}: no such folder on this machine")
        return LocalTree(root)

    def _card(self, item: Item, commit: SourceCommit) -> bytes:
        return _card(self._models[item.origin], self._versions[item.origin][commit.key])


def _credentials() -> tuple[dict[str, str], tuple[str, str] | None]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return headers, (user, password or "") if user and not token else None


def _refusal(url: str, response: httpx.Response) -> Missing | SourceFailed:
    try:
        told = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        told = f"answers {response.status_code} {response.reason_phrase}"
    return Missing(f"{url}: {told}") if response.status_code == 404 else SourceFailed(f"{url}: {told}")


def _named(name: str) -> str:
    """The filter that finds one model."""
    sign = '"' if "'" in name else "'"
    return f"name = {sign}{name}{sign}"


def _stage(version: Json) -> str:
    stage = str(version.get("current_stage") or "None")
    return "" if stage == "None" else stage.lower()


def _commit(item: Item, key: str, version: Json) -> SourceCommit:
    at = datetime.fromtimestamp(int(version["creation_timestamp"]) / 1000, UTC).isoformat()
    title = f"Version {version['version']}"
    return SourceCommit(key, title, str(version.get("description") or ""), str(version.get("user_id") or ""), at)


def _card_name(leaves: Mapping[str, Leaf]) -> str:
    return OTHER_CARD if CARD in leaves else CARD


def _card(model: Json, version: Json) -> bytes:
    """What the registry says of a model and of one version, as Markdown."""
    lines = ["---", "tags:", "- mlflow", "---", f"# {model['name']}", str(model.get("description") or "")]
    lines += [f"## Version {version['version']}", str(version.get("description") or "")]
    tags = [*model.get("tags", []), *version.get("tags", [])]
    table = [f"| {_cell(tag['key'])} | {_cell(tag.get('value', ''))} |" for tag in tags]
    text = "\n".join(lines[:4]) + "\n" + "\n\n".join(line for line in lines[4:] if line)
    if table:
        text += "\n\n| MLflow tag | value |\n|---|---|\n" + "\n".join(table)
    if version.get("run_id"):
        text += f"\n\nMLflow run `{version['run_id']}`."
    return (text + "\n").encode("utf-8", "replace")


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


SPEC = SourceKind("mlflow", "An MLflow model registry", "mlflow:URL", MlflowSource)
