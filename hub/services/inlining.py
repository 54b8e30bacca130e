"""Saved recipes as inputs of others: "recipe/ns/name[@version]" replaced by what that version says.

A saved version has the names in it pinned to commits, and the saved recipes in it to versions; so a recipe that names
it means the same for good once the version is pinned too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sqlmodel import Session

from adapterhub.hub.errors import RecipeNotFound
from adapterhub.hub.services import recipe_texts, saved_recipes
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.saved_recipes import Saved
from adapterhub.merging.errors import RecipeTooLarge, UnknownName
from adapterhub.merging.recipes.expression import DEFAULT_LIMITS
from adapterhub.merging.recipes.nodes import Call, Node, Recipe, Ref, children, rewritten

MAX_DEPTH = 8
"""How deep saved recipes may stand inside of one another."""


@dataclass(frozen=True)
class Inlined:
    """A recipe in which no saved recipe is left. pins: "<id>@<version>" of those that stood in its own text, by name.

    ids: of all that stood in it, however deep.
    """

    recipe: Recipe
    pins: Mapping[str, str] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()


def inlined(session: Session, caller: Caller, recipe: Recipe, pins: Mapping[str, str]) -> Inlined:
    """The recipe with the saved ones in it written out: their latest versions, or those that `pins` says.

    Raises UnknownName for one that is not there or not for this caller, RecipeTooLarge for too many or too deep,
    ExpressionError where one stands in delta(), which takes names.
    """
    if not any(is_saved(ref) for ref in recipe.references()):
        return Inlined(recipe)
    work = _Inlining(session, caller)
    root = work.written_out(recipe.root, pins, 0)
    return Inlined(replace(recipe, root=root), work.pins, frozenset(work.ids))


def is_saved(ref: Ref) -> bool:
    """Whether a name is that of a saved recipe."""
    return f"{ref.name}/".startswith(saved_recipes.PREFIX)


class _Inlining:
    """One walk over a recipe. left: how many names may still be put in place of saved recipes."""

    def __init__(self, session: Session, caller: Caller) -> None:
        self._session = session
        self._caller = caller
        self._left = DEFAULT_LIMITS.terms
        self.pins: dict[str, str] = {}
        self.ids: set[str] = set()

    def written_out(self, node: Node, pins: Mapping[str, str], depth: int) -> Node:
        """The node, its saved recipes written out. depth: how many of them it stands inside of."""
        return rewritten(node, lambda ref: self._saved(ref, pins, depth) if is_saved(ref) else ref)

    def _saved(self, ref: Ref, pins: Mapping[str, str], depth: int) -> Node:
        if depth >= MAX_DEPTH:
            raise RecipeTooLarge(f"{ref}: saved recipes stand more than {MAX_DEPTH} deep inside of one another")
        found = self._find(ref, pins.get(ref.address))
        self.ids.add(found.row.id)
        if depth == 0:
            self.pins[ref.address] = f"{found.row.id}@{found.version.number}"
        recipe = recipe_texts.read(found.version.text, found.version.syntax)
        self._left -= _names(recipe.root)
        if self._left < 0:
            raise RecipeTooLarge(f"{ref}: the saved recipes hold more than {DEFAULT_LIMITS.terms} terms together")
        inner = self.written_out(recipe.root, found.version.pins, depth + 1)
        # at the commits that the names meant when the version was saved
        commits = found.version.pins
        return rewritten(inner, lambda one: replace(one, revision=commits.get(one.address, one.revision)))

    def _find(self, ref: Ref, pin: str | None) -> Saved:
        try:
            if pin is None:
                name, number = saved_recipes.split_address(ref.address)
                return saved_recipes.get(self._session, self._caller, name, number)
            recipe_id, _, version = pin.partition("@")
            row = saved_recipes.of_id(self._session, self._caller, recipe_id)
            if row is None:
                raise UnknownName(f"{ref}: the saved recipe that was meant is deleted, or your token may not see it")
            return saved_recipes.version(self._session, self._caller, row, int(version))
        except RecipeNotFound as error:
            raise UnknownName(str(error)) from None


def _names(node: Node) -> int:
    return isinstance(node, Ref | Call) + sum(_names(child) for child in children(node))
