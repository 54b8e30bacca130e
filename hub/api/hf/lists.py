"""The list of models. Source: huggingface_hub/hf_api.py list_models, utils/_pagination.py."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlmodel import Session

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import read
from adapterhub.hub.api.hf.repos import Expand, only_expanded
from adapterhub.hub.api.hf.shapes import model_json
from adapterhub.hub.api.pages import next_link
from adapterhub.hub.services import search, trees
from adapterhub.hub.services.search import Filters, Page

router = APIRouter()

PAGE_MODELS = 100
SORTS = {
    "lastModified": "updated",
    "last_modified": "updated",
    "createdAt": "created",
    "created_at": "created",
    "downloads": "downloads",
    "trendingScore": "downloads",
    "trending_score": "downloads",
    "likes": "likes",
}
"""Our order for each of the client's; what trends is what is downloaded."""

PREFIXED = ("license", "dataset")
"""Kinds of tags whose id names the kind and whose label does not."""

ON_DEMAND = frozenset({"cardData", "config"})
"""Fields that are left out unless the parameter of that name, `full` or `expand` asks for them."""


@router.get("/api/models")
async def list_models(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    query: Annotated[str, Query(alias="search")] = "",
    author: str = "",
    tags: Annotated[Sequence[str], Query(alias="filter")] = (),
    pipeline_tag: str = "",
    sort: str = "lastModified",
    limit: Annotated[int, Query(ge=1)] = PAGE_MODELS,
    full: bool = False,
    expand: Expand = (),
    cursor: str | None = None,
) -> list[dict[str, Any]]:
    """The models and patches that the caller may see, a page at a time; the Link header names the next one.

    limit: the most that the client takes in all, and so a hint for the page. Raises InvalidRequest.
    """
    filters = Filters(query=query, author=author, task=pipeline_tag, tags=tags)

    def work(session: Session) -> tuple[Page, list[dict[str, Any]]]:
        page = search.listing(
            session, caller, filters, sort=SORTS.get(sort, sort), limit=min(limit, PAGE_MODELS), cursor=cursor
        )
        shapes = []
        for row in page.rows:
            files = trees.files(session, row.repo, row.commit) if full or "siblings" in expand else None
            shapes.append(model_json(session, row.repo, row.commit, files))
        return page, shapes

    page, shapes = await read(hub, work)
    if page.cursor:
        response.headers["Link"] = next_link(request, public_url, page.cursor)
    asked = {name for name in ON_DEMAND if full or request.query_params.get(name, "").lower() == "true"}
    left_out = ON_DEMAND - asked if not expand else frozenset()
    return [only_expanded({k: v for k, v in shape.items() if k not in left_out}, expand) for shape in shapes]


@router.get("/api/models-tags-by-type")
async def model_tags(hub: HubDep, caller: CallerDep) -> dict[str, list[dict[str, str]]]:
    """Every tag that there is to filter by, by what it speaks of."""
    found = await read(hub, lambda session: search.tags_by_type(session, caller))
    return {kind: [_tag_json(kind, tag) for tag in tags] for kind, tags in found.items()}


def _tag_json(kind: str, tag: str) -> dict[str, str]:
    return {"id": tag, "label": tag.partition(":")[2] if kind in PREFIXED else tag, "type": kind}
