"""Expressions made of parts: what a form's fields or a request's JSON say of base, inputs, weights and method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.nodes import Call, Recipe, Ref, total, weighted
from adapterhub.merging.registry import find_method, make_parameters, parameters_of


def expression(
    base: str | None,
    inputs: Sequence[tuple[str, float]],
    method: str | None = None,
    parameters: Mapping[str, float | bool | str] | None = None,
) -> str:
    """The expression of a base and inputs with their weights, by a method or as a sum.

    base: None leaves it to the patches. Names are "ns/name", "ns/name@revision" or "ns/name/folder@revision".
    parameters: by name, each checked here; those that are the method's defaults anyway are left out. Raises
    InvalidParameter for no input at all, a weight that is no number, and a parameter that the method has not or that is
    outside of its range; UnknownMethod; ExpressionError for what is no name.
    """
    for name, weight in inputs:
        if not math.isfinite(weight):
            raise InvalidParameter(f"{name}: its weight is {weight}, which is no number")
    if not inputs:
        raise InvalidParameter("inputs: name at least one patch or model to merge, such as team/patch")
    parts = tuple(weighted(weight, Ref.of(name)) for name, weight in inputs)
    if not method:
        if parameters:
            raise InvalidParameter(f"{', '.join(sorted(parameters))}: parameters belong to a method, and none is named")
        return str(Recipe(total(parts if base is None else (Ref.of(base), *parts))))
    spec = find_method(method, methods())
    values = asdict(make_parameters(spec.parameters, parameters or {}, spec.name))
    defaults = {one.name: one.default for one in parameters_of(spec.parameters)}
    chosen = tuple((name, value) for name, value in sorted(values.items()) if value != defaults[name])
    return str(Recipe(Call(spec.name, None if base is None else Ref.of(base), parts, chosen)))
