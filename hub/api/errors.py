"""The one table: what each domain error becomes on the wire, in each dialect's own shape.

Every reply carries X-Error-Code and X-Error-Message. huggingface_hub chooses its exception class by the code and shows
the message; it is the only source of both on HEAD. A class that is not in the table is looked up by its bases.
Source: huggingface_hub/utils/_http.py (hf_raise_for_status); RFC 9457 for our own REST; openai's error object.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, RedirectResponse, Response

from adapterhub.errors import AdapterHubError
from adapterhub.hub import errors as hub
from adapterhub.hub.api.dialects import Dialect, dialect_of
from adapterhub.merging import errors as merging
from adapterhub.storage import errors as storage

STATUS: Mapping[type[AdapterHubError], int] = {
    hub.NotAuthenticated: 401,
    hub.InvalidToken: 401,
    hub.Forbidden: 403,
    hub.GatedRepo: 403,
    hub.GatedAnonymous: 401,
    hub.DisabledRepo: 403,
    hub.NotFound: 404,
    hub.Conflict: 409,
    hub.HeadMoved: 412,
    hub.Invalid: 400,
    hub.InvalidRange: 416,
    hub.InvalidCard: 422,
    hub.UnfitPatch: 422,
    hub.TooLarge: 413,
    hub.Unavailable: 503,
    hub.WrongUpstream: 502,
    storage.BlobNotFound: 404,
    storage.DigestMismatch: 400,
    storage.RangeNotSatisfiable: 416,
    storage.InvalidDigest: 400,
    storage.InvalidXet: 400,
    storage.TooLarge: 413,
    storage.StoreUnavailable: 503,
    merging.ExpressionError: 400,
    merging.RecipeFileError: 400,
    merging.RecipeTooLarge: 400,
    merging.UnknownName: 404,
    merging.MergingError: 422,
}
"""Domain error -> HTTP status."""

_MESSAGES: Mapping[type[AdapterHubError], str] = {
    # With any other text, huggingface_hub takes a 401 over https for a repository that is missing.
    hub.InvalidToken: "Invalid credentials in Authorization header",
    # It knows a disabled repository by this text alone.
    hub.DisabledRepo: "Access to this resource is disabled.",
}

_CODES: Mapping[type[AdapterHubError], str] = {
    hub.GatedAnonymous: "GatedRepo",
    hub.OtherRepoType: "RepoNotFound",
}
"""Classes that clients know by another name than their own."""

_OPENAI_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_OPENAI_CODES: Mapping[str, str] = {
    "BaseMismatch": "incompatible_patch",
    "BrokenContainer": "incompatible_patch",
    "InvalidPatch": "incompatible_patch",
    "InvalidToken": "invalid_api_key",
    "NonFinite": "incompatible_patch",
    "NotAuthenticated": "invalid_api_key",
    "NotFoldable": "incompatible_patch",
    "NotStackable": "incompatible_patch",
    "ShapeMismatch": "incompatible_patch",
    "UnfitPatch": "incompatible_patch",
    "UnknownSite": "incompatible_patch",
}
"""Codes that OpenAI's clients, or those of other engines, know by another name than ours."""


class RepoMoved(AdapterHubError):
    """The repository has another name now, or is spelled otherwise; answered as a redirect that keeps the method."""

    def __init__(self, asked: str, full_name: str) -> None:
        super().__init__(f"{asked} is {full_name} now")
        self.asked = asked
        self.full_name = full_name


def status_of(error: AdapterHubError) -> int:
    """The HTTP status of `error`: that of its nearest class in the table, 500 where there is none."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def snake_case(name: str) -> str:
    """`RepoNotFound` as `repo_not_found`: how our REST and OpenAI's object spell codes."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def header_text(message: str) -> str:
    """`message` on one line, at most 1000 characters, in ASCII: clients disagree about anything else in a header.

    The body holds it as it is.
    """
    line = unicodedata.normalize("NFKD", " ".join(message.split()))[:1000]
    return line.encode("ascii", "replace").decode()


def error_response(
    scope_path: str, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The reply that tells an error in the shape of the dialect that `scope_path` belongs to.

    code: as the domain error's class is named.
    """
    dialect = dialect_of(scope_path)
    sent = {"X-Error-Code": code, "X-Error-Message": header_text(message), **(headers or {})}
    if status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if dialect is Dialect.OPENAI:
        # OpenAI's clients retry neither, but know only 400 as a request that is wrong for good
        return JSONResponse(_openai_object(status, code, message), 400 if status == 422 else status, sent)
    if dialect is Dialect.REST:
        problem = {"type": "about:blank", "title": _title(status), "status": status, "detail": message}
        return JSONResponse({**problem, "code": snake_case(code)}, status, sent, "application/problem+json")
    if dialect is Dialect.LFS:
        return JSONResponse({"message": message}, status, sent, "application/vnd.git-lfs+json")
    return JSONResponse({"error": message}, status, sent)


def _openai_object(status: int, code: str, message: str) -> dict[str, dict[str, str | None]]:
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = _OPENAI_CODES.get(code, snake_case(code))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def openai_error(error: AdapterHubError) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object, for a reply that has already begun."""
    return _openai_object(status_of(error), type(error).__name__, str(error))


def domain_response(path: str, error: AdapterHubError) -> Response:
    """The reply that tells a domain error to the caller of `path`."""
    kind = type(error)
    headers = _headers_of(error)
    code = _CODES.get(kind, kind.__name__)
    response = error_response(path, status_of(error), code, str(error), headers)
    if kind in _MESSAGES:
        response.headers["X-Error-Message"] = _MESSAGES[kind]
    return response


def install(app: FastAPI, page: Callable[[int, str, str], Response]) -> None:
    """Make `app` answer domain errors, failed validation and unknown routes in each dialect's shape.

    page: makes the page that tells a person of an error, from status, title and message.
    """
    app.state.error_page = page
    app.add_exception_handler(RepoMoved, _on_repo_moved)
    app.add_exception_handler(AdapterHubError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def _headers_of(error: AdapterHubError) -> dict[str, str]:
    if isinstance(error, hub.InvalidRange | storage.RangeNotSatisfiable):
        return {"Content-Range": f"bytes */{error.size_bytes}"}
    if isinstance(error, hub.OffsetMismatch):
        return {"Upload-Offset": str(error.expected)}
    if isinstance(error, hub.Unavailable):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, hub.EntryNotFound):
        return {"X-Repo-Commit": error.commit}
    if isinstance(error, hub.OtherRepoType):
        # `datasets` tells a missing repository in words of its own; huggingface_hub logs this beside them
        return {"X-HF-Warning": f"repo-type; {header_text(error.reason)}"}
    return {}


def _for_reader(request: Request, response: Response, message: str) -> Response:
    """`response`, or the page that says the same where a browser asked for a page."""
    accepts_html = "text/html" in request.headers.get("accept", "")
    if dialect_of(_path(request)) is not Dialect.PAGE or not accepts_html:
        return response
    page: Response = request.app.state.error_page(response.status_code, _title(response.status_code), message)
    for name in ("X-Error-Code", "X-Error-Message", "Retry-After"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page


def _title(status: int) -> str:
    return HTTPStatus(status).phrase


def _path(request: Request) -> str:
    return str(request.scope["path"])


async def _on_repo_moved(request: Request, error: Exception) -> Response:
    assert isinstance(error, RepoMoved)
    path = request.scope["raw_path"].decode("ascii").replace(f"/{error.asked}", f"/{error.full_name}", 1)
    query = request.scope["query_string"].decode("ascii")
    return RedirectResponse(f"{path}?{query}" if query else path, 307)


async def _on_domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AdapterHubError)
    return _for_reader(request, domain_response(_path(request), error), str(error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = (f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()[:10])
    message = "; ".join(problems)
    return _for_reader(request, error_response(_path(request), 400, "InvalidRequest", message), message)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, AdapterHubError):  # FastAPI wraps what is raised while it reads a body
        return domain_response(_path(request), error.__cause__)
    if error.status_code == 404:
        message = f"no page or route {request.url.path}"
        return _for_reader(request, error_response(_path(request), 404, "NotFound", message), message)
    code = _title(error.status_code).title().replace(" ", "")
    return error_response(_path(request), error.status_code, code, error.detail, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody reads it: the client hung up while sending. It must not look like a fault of the server's."""
    return Response(status_code=499)
