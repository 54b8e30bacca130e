"""The list of models. Source: huggingface_hub/hf_api.py list_models, utils/_pagination.py."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlmodel import Session

from adapterhub.hub.api.deps import CallerDep, HubDep, PublicUrl
from adapterhub.hub.api.hf.addressing import read
from adapterhub.hub.api.hf.repos import only_expanded
from adapterhub.hub.api.hf.shapes import check_expand, model_json
from adapterhub.hub.api.pages import next_link
from adapterhub.hub.errors import InvalidRequest
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

CARD_DETAILS = frozenset({"model-index", "widgetData"})
"""Parts of a card that a list shows only where `expand` names them."""

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_BOUND = re.compile(r"(min|max):(\d{1,15}(?:\.\d{1,6})?)([KMBT]?)", re.IGNORECASE)


class Wanted(BaseModel):
    """What `list_models` asks for.

    apps, inference, inference_provider: asked of a hub that knows which programs can run a model and which companies
    serve it. Nobody serves the models of this one, so those filters find nothing; apps are not known, so that one is
    refused rather than answered wrongly. direction: -1 for the greatest first, as by default.
    """

    search: str = ""
    author: str = ""
    filter: list[str] = Field(default_factory=list)
    pipeline_tag: str = ""
    gated: bool | None = None
    num_parameters: str = ""
    apps: list[str] = Field(default_factory=list)
    inference: list[str] = Field(default_factory=list)
    inference_provider: list[str] = Field(default_factory=list)
    sort: str = "lastModified"
    direction: Literal["-1", "1"] = "-1"
    limit: int = Field(default=PAGE_MODELS, ge=1)
    full: bool = False
    cardData: bool = False  # noqa: N815  the client's spelling
    config: bool = False
    expand: list[str] = Field(default_factory=list)
    cursor: str | None = None

    def filters(self) -> Filters:
        """The same as the catalogue takes it. Raises InvalidRequest."""
        if self.apps:
            raise InvalidRequest("apps: this hub does not know which programs can run a model; leave it out")
        return Filters(
            query=self.search,
            author=self.author,
            task=self.pipeline_tag,
            tags=self.filter,
            is_gated=self.gated,
            parameters=_bounds(self.num_parameters),
        )

    @property
    def left_out(self) -> frozenset[str]:
        """Fields that only a request for them shows; `full` asks for the card too."""
        if self.expand:
            return frozenset()
        asked = {"cardData": self.full or self.cardData, "config": self.config}
        return CARD_DETAILS | {name for name, is_asked in asked.items() if not is_asked}


@router.get("/api/models")
async def list_models(
    request: Request,
    response: Response,
    hub: HubDep,
    caller: CallerDep,
    public_url: PublicUrl,
    wanted: Annotated[Wanted, Query()],
) -> list[dict[str, Any]]:
    """The models and patches that the caller may see, a page at a time; the Link header names the next one.

    limit: the most that the client takes in all, and so a hint for the page. Raises InvalidRequest.
    """
    check_expand(wanted.expand)
    filters = wanted.filters()
    if wanted.inference or wanted.inference_provider:
        return []
    with_files = wanted.full or "siblings" in wanted.expand

    def work(session: Session) -> tuple[Page, list[dict[str, Any]]]:
        page = search.listing(
            session,
            caller,
            filters,
            sort=SORTS.get(wanted.sort, wanted.sort),
            limit=min(wanted.limit, PAGE_MODELS),
            cursor=wanted.cursor,
            reverse=wanted.direction == "1",
            is_counted=False,
        )
        shapes = []
        for row in page.rows:
            files = trees.files(session, row.repo, row.commit) if with_files else None
            shapes.append(model_json(session, caller, row.repo, row.commit, files=files, extras=wanted.expand))
        return page, shapes

    page, shapes = await read(hub, work)
    if page.cursor:
        response.headers["Link"] = next_link(request, public_url, page.cursor)
    left_out = wanted.left_out
    return [only_expanded({k: v for k, v in shape.items() if k not in left_out}, wanted.expand) for shape in shapes]


@router.get("/api/models-tags-by-type")
async def model_tags(hub: HubDep, caller: CallerDep) -> dict[str, list[dict[str, str]]]:
    """Every tag that there is to filter by, by what it speaks of."""
    found = await read(hub, lambda session: search.tags_by_type(session, caller))
    return {kind: [_tag_json(kind, tag) for tag in tags] for kind, tags in found.items()}


def _tag_json(kind: str, tag: str) -> dict[str, str]:
    return {"id": tag, "label": tag.partition(":")[2] if kind in PREFIXED else tag, "type": kind}


def _bounds(written: str) -> tuple[int | None, int | None]:
    """The least and the greatest number that "min:6B,max:128B" names, None where it names none.

    Raises InvalidRequest.
    """
    found: dict[str, int] = {}
    for part in written.split(",") if written else ():
        bound = _BOUND.fullmatch(part.strip())
        if bound is None:
            raise InvalidRequest(f"num_parameters {written[:100]!r}: write min:6B, max:128B or min:6B,max:128B")
        found[bound[1].lower()] = int(Decimal(bound[2]) * _FACTORS[bound[3].upper()])
    return found.get("min"), found.get("max")
