"""Is this card sound: asked by the client before every commit that holds a README.md."""

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.responses import JSONResponse

from adapterhub.hub.api import threads
from adapterhub.hub.api.raw import RawRoute
from adapterhub.hub.errors import InvalidCard
from adapterhub.hub.services import cards

router = APIRouter(route_class=RawRoute)


class CardText(BaseModel):
    """The text of a README.md before it is pushed."""

    content: str
    repoType: str = "model"  # noqa: N815  the client's spelling


@router.post("/api/validate-yaml")
async def validate_card(card: CardText) -> Response:
    """The card's errors and warnings: 400 with an error, which the client turns into a ValueError, else 200.

    Cards of datasets and spaces are only read: what theirs should say is not known here.
    """
    check = cards.validate if card.repoType == "model" else _problems_of_reading
    try:
        problems = await threads.run(check, card.content)
    except InvalidCard as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": [{"message": problem} for problem in problems]})


def _problems_of_reading(content: str) -> list[str]:
    cards.parse(content)
    return []
