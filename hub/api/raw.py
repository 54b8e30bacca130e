"""Routes that match the path as it was sent, so that an encoded slash stays inside its segment.

huggingface_hub sends the branch `feat/x` as the one segment `feat%2Fx`; Starlette decodes a path before it routes, and
would see two. Each parameter is decoded here, once.
"""

from urllib.parse import unquote

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from adapterhub.hub.errors import InvalidRequest


class RawRoute(APIRoute):
    """An APIRoute that matches `raw_path`; parameters arrive decoded. Raises InvalidRequest when one is not UTF-8."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """How well `scope` fits this route, and what the endpoint needs to know of it."""
        if scope["type"] != "http":
            return Match.NONE, {}
        raw = {**scope, "path": scope["raw_path"].decode("ascii", "replace")}
        match, child = super().matches(raw)
        if match is not Match.NONE:
            child["path_params"] = {name: _decoded(value) for name, value in child["path_params"].items()}
        return match, child


def _decoded(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{segment!r} in the URL is not percent-encoded UTF-8") from None
