"""What recipes are written in: every text that somebody sends is read here, by the reader of its syntax."""

from collections.abc import Callable, Mapping

from adapterhub.hub.errors import InvalidRequest
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Recipe

EXPRESSION = "expression"

READERS: Mapping[str, Callable[[str], Recipe]] = {EXPRESSION: parse}
"""By syntax, what makes a recipe of a text. Each raises ExpressionError, RecipeTooLarge."""


def read(text: str, syntax: str = EXPRESSION) -> Recipe:
    """The recipe that a text means. Raises InvalidRequest for an unknown syntax; as its reader."""
    if syntax not in READERS:
        raise InvalidRequest(f"syntax {syntax!r}: a recipe is written as {' or '.join(READERS)}")
    return READERS[syntax](text)
