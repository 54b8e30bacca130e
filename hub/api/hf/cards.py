"""Is this card sound: asked by the client before every commit that holds a README.md."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

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
async def validate_card(card: CardText) -> dict[str, Any]:
    """The card's errors and warnings; always 200, since the client reads the lists before it looks at the status."""
    try:
        problems = await threads.run(cards.validate, card.content)
    except InvalidCard as error:
        return {"errors": [{"message": str(error)}], "warnings": []}
    return {"errors": [], "warnings": [{"message": problem} for problem in problems]}
