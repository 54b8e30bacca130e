"""What recipes are written in: every text that somebody sends is read here, by the reader of its syntax."""

from collections.abc import Callable, Mapping

from adapterhub.hub.errors import InvalidRequest
from adapterhub.merging.errors import RecipeFileError
from adapterhub.merging.recipes import yaml
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Recipe

EXPRESSION = "expression"
YAML = "yaml"


def _file(text: str) -> Recipe:
    """The recipe of a file whose models are repositories. Raises RecipeFileError for a folder, and as its reader."""
    recipe = yaml.read(text)
    for _, folder in recipe.folders:
        raise RecipeFileError(folder, "is a folder of the machine that wrote the file; push it and name its repository")
    return recipe


READERS: Mapping[str, Callable[[str], Recipe]] = {EXPRESSION: parse, YAML: _file}
"""By syntax, what makes a recipe of a text. Each raises ExpressionError, RecipeTooLarge, or RecipeFileError."""


def read(text: str, syntax: str = EXPRESSION) -> Recipe:
    """The recipe that a text means. Raises InvalidRequest for an unknown syntax; as its reader."""
    if syntax not in READERS:
        raise InvalidRequest(f"syntax {syntax!r}: a recipe is written as {' or '.join(READERS)}")
    return READERS[syntax](text)
