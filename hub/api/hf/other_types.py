"""Datasets, spaces, kernels and buckets: refused in one sentence, whatever is asked about them.

Source: the routes in huggingface_hub/constants.py REPO_TYPES_URL_PREFIXES, hf_api.py and _buckets.py.
"""

from fastapi import APIRouter, Request

from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import OtherRepoType, UnsupportedRepoType

router = APIRouter(route_class=RawRoute)

OTHER_TYPES = ("datasets", "spaces", "kernels", "buckets")

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


def refuse_other_types(repo_type: str | None) -> None:
    """Pass for models. Raises UnsupportedRepoType for any other type of repository."""
    if repo_type not in (None, "model"):
        raise UnsupportedRepoType(_refusal(f"{repo_type}s"))


def _refusal(kind: str) -> str:
    """Why there is none of them, `kind` in the plural."""
    return f"{kind} are not kept here; this hub holds models and patches only"


async def _refuse(request: Request) -> None:
    """Raises OtherRepoType for reading one, UnsupportedRepoType for everything else.

    Clients take the first for a missing repository, and any other refusal of a file for a lost connection.
    """
    kind, *names = request.url.path.removeprefix("/api").strip("/").split("/")
    kind = kind.removesuffix("-tags-by-type")
    if request.method in ("GET", "HEAD") and len(names) >= 2:
        raise OtherRepoType("/".join(names[:2]), _refusal(kind))
    raise UnsupportedRepoType(_refusal(kind))


for _path in (
    *(f"/api/{kind}" for kind in OTHER_TYPES),
    *(f"/api/{kind}-tags-by-type" for kind in OTHER_TYPES),
    *(f"/api/{kind}/{{rest:path}}" for kind in OTHER_TYPES),
    *(f"/{kind}/{{rest:path}}" for kind in OTHER_TYPES),
):
    router.add_api_route(_path, _refuse, methods=_METHODS)
