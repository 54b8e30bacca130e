"""The command's only way to the server: huggingface_hub for files, httpx for everything else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from adapterhub.cli.errors import CliError, Declined, Misused, of_code, of_status

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import HfApi

DEFAULT_ENDPOINT = "http://127.0.0.1:8000"
ENDPOINT_VARIABLES = ("ADAPTERHUB_ENDPOINT", "HF_ENDPOINT")
TIMEOUT_S = 60.0
RECONNECT_S = 1.0
"""Seconds between two tries to watch a job again after its stream broke."""
PATIENCE_S = 30.0
"""Seconds without a connection after which watching gives up."""

FINISHED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: str
    id: str = ""


def find_endpoint(given: str | None) -> str:
    """The server's URL: what was given, else of the environment, else this machine's. Raises Misused."""
    endpoint = given or next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
    endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        raise Misused(f"endpoint {endpoint!r}: write a URL such as {DEFAULT_ENDPOINT}")
    return endpoint


def find_token(given: str | None) -> str | None:
    """The token: what was given, else of the environment, else the one that `login` or `hf auth login` stored."""
    token = given or os.environ.get("ADAPTERHUB_TOKEN")
    if token:
        return token.strip()
    from huggingface_hub import get_token

    return get_token()


class Client:
    """A server and who asks it. Raises Missing, Declined or CliError with the server's own sentence."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = find_endpoint(endpoint)
        # huggingface_hub reads it once, when it is imported
        os.environ["HF_ENDPOINT"] = self.endpoint
        self.token = find_token(token)

    def get(self, path: str, /, **query: Any) -> Any:
        """The JSON at a path; parameters that are None or empty are left out."""
        asked = {name: value for name, value in query.items() if value not in (None, "")}
        return self._ask("GET", path + ("?" + urlencode(asked, doseq=True) if asked else ""))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that answers a request."""
        return self._ask("POST", path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that answers a change, None where there is nothing to tell."""
        return self._ask("PUT", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that answers a change of a part."""
        return self._ask("PATCH", path, body)

    def delete(self, path: str) -> None:
        """Have the thing at a path removed."""
        self._ask("DELETE", path)

    def items(self, path: str, limit: int, /, **query: Any) -> Iterator[dict[str, Any]]:
        """Up to `limit` items of a list, from as many of its pages as that takes."""
        page = self.get(path, limit=min(limit, 100), **query)
        while True:
            for item in page["items"][:limit]:
                yield item
                limit -= 1
            if limit <= 0 or not page.get("next"):
                return
            following = urlsplit(urljoin(self.endpoint, page["next"]))
            # a proxy may call the server otherwise than we do; its query is all that counts
            page = self._ask("GET", f"{path}?{following.query}")

    def events(self, method: str, path: str, body: Any = None, last_id: str = "") -> Iterator[Event]:
        """The server-sent events of an answer, as they arrive."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        with self.http() as http, http.stream(method, path, json=body, headers=headers) as response:
            if response.is_error:
                response.read()
                raise self.refusal(response)
            yield from _parse_events(response.iter_lines())

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job at each of its changes, to its end; survives a restart of the server. Raises as the others."""
        last_id, broken_at = "", 0.0
        while True:
            try:
                for event in self.events("GET", f"/api/jobs/{quote(job_id, safe='')}/events", last_id=last_id):
                    last_id, broken_at = event.id, 0.0
                    yield json.loads(event.data)
                    if event.name == "done":
                        return
            except Unreachable:
                broken_at = broken_at or time.monotonic()
                if time.monotonic() - broken_at > PATIENCE_S:
                    raise
            time.sleep(RECONNECT_S)

    @contextmanager
    def files(self) -> Iterator[HfApi]:
        """huggingface_hub on this server, its errors turned into ours."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own, by whatever name

        try:
            yield HfApi(endpoint=self.endpoint, token=self.token or False)
        except HfHubHTTPError as error:
            raise self.refusal(error.response) from error
        except HFValidationError as error:
            raise Declined(str(error)) from error
        except (LocalEntryNotFoundError, httpx.TransportError, ConnectionError) as error:
            self.get("/health")  # says so where no server answers
            raise CliError(f"{type(error).__name__}: {error}") from error

    def log_in(self) -> str:
        """The account's name, once the server took the token and it is stored as `hf auth login` stores it."""
        name: str = self.get("/api/whoami-v2")["name"]
        with self.files():
            from huggingface_hub import constants, login

            if self.endpoint != constants.ENDPOINT:
                raise CliError(
                    f"huggingface_hub was imported for {constants.ENDPOINT}; log in from a process of its own"
                )
            login(token=self.token)
        return name

    def push_folder(self, folder: Path, repo_id: str, *, private: bool, branch: str | None, message: str | None) -> str:
        """URL of the commit that holds the folder's files; the repository is made where there is none."""
        with self.files() as api:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if branch:
                api.create_branch(repo_id, branch=branch, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=branch, commit_message=message or f"Push {folder.name}"
            )
            return str(done.commit_url)

    def pull(self, repo_id: str, folder: Path, revision: str | None) -> Path:
        """The folder, with the files of a revision in it."""
        with self.files() as api:
            return Path(api.snapshot_download(repo_id, revision=revision, local_dir=folder))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with self.http() as http:
            response = http.request(method, path, json=body)
            if response.is_error:
                raise self.refusal(response)
            return response.json() if response.content else None

    @contextmanager
    def http(self) -> Iterator[httpx.Client]:
        """One connection for as many requests as wanted; what goes wrong with it becomes an error of ours."""
        import httpx

        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        # a model that loads for the first time takes minutes before its first word
        timeout = httpx.Timeout(TIMEOUT_S, read=600.0)
        try:
            with httpx.Client(base_url=self.endpoint, headers=headers, timeout=timeout, follow_redirects=True) as http:
                yield http
        except httpx.ConnectError as error:
            raise Unreachable(
                f"no adapterhub answers at {self.endpoint}; start one with `adapterhub serve`, or set HF_ENDPOINT"
            ) from error
        except httpx.TransportError as error:
            raise Unreachable(f"{self.endpoint}: the connection broke: {error or type(error).__name__}") from error
        except json.JSONDecodeError as error:
            raise CliError(f"{self.endpoint}: answers with something that is no JSON; is it an adapterhub?") from error

    def refusal(self, response: Any) -> CliError:
        """The error in the server's own words. response: of httpx, or of what huggingface_hub uses in its place."""
        sentence = _sentence(response)
        if response.status_code == 401 and "log in" not in sentence:
            sentence += "; run `adapterhub login`"
        return of_status(response.status_code, sentence)


class Unreachable(CliError):
    """No server answers, or the connection to it broke."""


def repo_path(repo_id: str) -> str:
    """The path of a repository in our own REST. Raises Misused for what is no namespace/name."""
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise Misused(f"{repo_id!r}: write a repository as namespace/name")
    return "/api/patches/" + quote(repo_id)


def repo_and_folder(name: str) -> tuple[str, str]:
    """ "ns/name" and the folder below it of "ns/name/folder"; "" where none is said. Raises Misused as `repo_path`."""
    namespace, _, rest = name.partition("/")
    repo, _, folder = rest.partition("/")
    repo_path(f"{namespace}/{repo}")
    return f"{namespace}/{repo}", folder.strip("/")


def split_revision(name: str) -> tuple[str, str | None]:
    """Repository and revision of "ns/name@revision"; None where none is said."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def outcome(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a job that succeeded. Raises Missing, Declined or CliError, as it failed."""
    if job["state"] == "succeeded":
        return dict(job["result"] or {})
    error = job["error"] or {"code": job["state"], "message": f"job {job['id']} was {job['state']}"}
    raise of_code(error["code"], error["message"])


def _sentence(response: Any) -> str:
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        error = body.get("error")
        told = body.get("detail") or (error.get("message") if isinstance(error, dict) else error)
        if isinstance(told, str) and told:
            return told
    told = response.headers.get("X-Error-Message")
    return told or f"{response.request.url}: the server answers {response.status_code} {response.reason_phrase}"


def _parse_events(lines: Iterator[str]) -> Iterator[Event]:
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif "data" in fields:
            last = {name: values[-1] for name, values in fields.items()}
            yield Event(last.get("event", "message"), "\n".join(fields["data"]), last.get("id", ""))
            fields = {}
        else:
            fields = {}
