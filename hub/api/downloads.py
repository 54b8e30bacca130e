"""A stored file as a reply: whole or one range, streamed, with validators that let clients resume and cache."""

from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.ranges import parse_range
from adapterhub.hub.context import Hub
from adapterhub.hub.services import blobs
from adapterhub.hub.services.trees import Entry


async def file_response(request: Request, hub: Hub, entry: Entry, commit: str) -> Response:
    """The bytes of `entry`, or for HEAD the headers alone.

    ETag is the content's own name, which the client's cache shares between repositories: git's id of a regular file,
    the sha256 of a large one. Files are attachments of no particular type, so that no browser runs one in this
    service's name, and are never compressed, so that ranges stay ranges. Raises InvalidRange.
    """
    etag = f'"{etag_of(entry)}"'
    headers = _headers(entry, commit, etag)
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    wanted = None
    if request.headers.get("if-range", etag) == etag:
        wanted = parse_range(request.headers.get("range"), entry.size_bytes)
    start, end = wanted or (0, entry.size_bytes)
    headers["Content-Length"] = str(end - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size_bytes}"
    status = 206 if wanted else 200
    if request.method == "HEAD":
        headers["Content-Length"] = str(entry.size_bytes)
        return Response(status_code=200, headers=headers)
    pieces = await threads.run(blobs.open_file, hub, entry, start, end)
    return StreamingResponse(threads.iterate(pieces), status, headers, "application/octet-stream")


def etag_of(entry: Entry) -> str:
    """The name of the file's content as the client's cache knows it, without quotes."""
    return entry.digest.removeprefix("sha256:") if entry.is_lfs else entry.oid


def _headers(entry: Entry, commit: str, etag: str) -> dict[str, str]:
    name = entry.path.rpartition("/")[2]
    headers = {
        "ETag": etag,
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}; filename=\"{_ascii(name)}\";",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if entry.is_lfs:
        headers["X-Linked-ETag"] = etag
        headers["X-Linked-Size"] = str(entry.size_bytes)
    return headers


def _ascii(name: str) -> str:
    return name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_")
