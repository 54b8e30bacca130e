"""Models composed while they decode, as a recipe says it: each member a recipe of its own, and what joins them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.merging.decoding import operators
from adapterhub.merging.errors import ExpressionError, InvalidParameter, NotRepresentable, RecipeTooLarge
from adapterhub.merging.recipes.nodes import Composed, Form, Node, Recipe, Weighted, weighted
from adapterhub.merging.recipes.values import Schedule, parameters_json
from adapterhub.merging.registry import OperatorSpec, make_parameters

MOST_MEMBERS = 16
"""Most models that are composed: each computes at every step."""


@dataclass(frozen=True)
class Member:
    """One model of a composition. role: what it is to the operator. weight: 1 where the operator takes none."""

    role: str
    weight: float
    recipe: Recipe


@dataclass(frozen=True)
class Composition:
    """What a composition says, checked. members: in the order in which the operator takes them."""

    spec: OperatorSpec
    parameters: Any
    members: tuple[Member, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the operator's others, which come last."""
        return tuple(one.weight for one in self.members if one.role == self.spec.others)

    def to_json(self, sums: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Its canonical form; sums: what each member's recipe is there."""
        told = [{"role": one.role, "weight": one.weight, **more} for one, more in zip(self.members, sums, strict=True)]
        return {"operator": self.spec.name, "parameters": parameters_json(self.parameters), "members": told}


def composition_of(recipe: Recipe) -> Composition:
    """What a recipe that is a composition says.

    Raises ExpressionError for members that the operator lacks or does not take, InvalidParameter, RecipeTooLarge, and
    NotRepresentable where a recipe file says a dtype or anything else of a result, which does not exist.
    """
    root = recipe.root
    assert isinstance(root, Composed)  # who calls this has looked
    spec = operators()[root.operator]
    if recipe.form != Form():
        raise NotRepresentable(f"{refusal(root)}; so a recipe says nothing of a result's dtype, kind or tokenizer")
    if any(isinstance(value, Schedule) for _, value in root.parameters):
        raise InvalidParameter(f"{spec.name}: its parameters are one choice for all tensors; found schedules")
    parameters = make_parameters(spec.parameters, dict(root.parameters), spec.name)
    _check_roles(spec, root, recipe)
    others = [_member(spec, node, recipe) for node in root.others]
    spec.check([one.weight for one in others], parameters)
    if bool(root.first) + len(root.named) + len(others) > MOST_MEMBERS:
        raise RecipeTooLarge(
            f"{spec.name}: composes more than {MOST_MEMBERS} models, each of which computes every step"
        )
    leading = [] if root.first is None else [Member(spec.first, 1.0, Recipe(root.first))]
    named = [Member(role, 1.0, Recipe(node)) for role, node in root.named]
    return Composition(spec, parameters, (*leading, *named, *others))


def composed(
    operator: str, members: Iterable[tuple[str, float, Node]], parameters: Iterable[tuple[str, Any]]
) -> Composed:
    """The node of members by role and weight. Raises InvalidParameter for an operator that does not exist."""
    if operator not in operators():
        raise InvalidParameter(f"{operator}: no such operator; known are {', '.join(operators())}")
    spec, first, named, others = operators()[operator], None, [], []
    for role, weight, node in members:
        if role == spec.first:
            first = node
        elif role in spec.named:
            named.append((role, node))
        else:
            others.append(weighted(weight, node))
    return Composed(operator, first, tuple(others), tuple(named), tuple(sorted(parameters)))


def with_members(node: Composed, change: Callable[[Node], Node]) -> Composed:
    """The composition with each member changed, whose weights stay."""

    def other(one: Node) -> Node:
        return replace(one, node=change(one.node)) if isinstance(one, Weighted) else change(one)

    return replace(
        node,
        first=None if node.first is None else change(node.first),
        others=tuple(map(other, node.others)),
        named=tuple((role, change(one)) for role, one in node.named),
    )


def refusal(node: Composed) -> str:
    """A sentence on why nothing can be merged, written or attached of a composition."""
    return (
        f"{node.operator}(...) composes models while they decode and has no merged result; serve it under model=, or "
        "merge its members each for itself"
    )


def _check_roles(spec: OperatorSpec, node: Composed, recipe: Recipe) -> None:
    text = recipe.text or str(recipe)
    missing = [role for role in spec.named if role not in dict(node.named)]
    fewest, most = spec.count
    if (
        missing
        or (node.first is None) == bool(spec.first)
        or not fewest <= len(node.others) <= (most or len(node.others))
    ):
        lacks = f"; {' and '.join(missing)} is missing" if missing else ""
        raise ExpressionError(text, 0, f"{spec.name} is written {spec.usage}{lacks}")


def _member(spec: OperatorSpec, node: Node, recipe: Recipe) -> Member:
    """One of the others, apart from its weight."""
    if not isinstance(node, Weighted):
        return Member(spec.others, 1.0, Recipe(node))
    if node.schedules or not spec.takes_weights:
        what = "one number" if spec.takes_weights else "no weight"
        raise ExpressionError(recipe.text or str(recipe), 0, f"{spec.name}: {node}: a model takes {what} here")
    return Member(spec.others, node.weight, Recipe(node.node))
