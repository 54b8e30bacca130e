"""Links from one page of a list to the next."""

from collections.abc import Sequence
from typing import Annotated, TypeVar
from urllib.parse import urlencode

from fastapi import Query, Request, Response

T = TypeVar("T")

PAGE = 100
Skip = Annotated[int, Query(alias="cursor", ge=0)]
"""How many items earlier pages had, for lists that are counted through."""
Limit = Annotated[int, Query(ge=1, le=1000)]


def next_link(request: Request, public_url: str, cursor: str) -> str:
    """The Link header that leads to the page after `cursor`, with every other parameter of this request kept.

    The URL is absolute, as huggingface_hub follows it verbatim.
    """
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    path = request.scope["raw_path"].decode("ascii")
    return f'<{public_url}{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'


def one_page(
    request: Request, response: Response, public_url: str, found: Sequence[T], *, skip: int, limit: int
) -> Sequence[T]:
    """The first `limit` of what was found after `skip` items; where there is one more, the Link to the next page."""
    if len(found) > limit:
        response.headers["Link"] = next_link(request, public_url, str(skip + limit))
    return found[:limit]
