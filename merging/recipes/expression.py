"""Expressions: text like "demo/base + 0.7*demo/code" read into a recipe. `expression.lark` is the grammar."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedInput, UnexpectedToken

from adapterhub.merging.decoding import operators
from adapterhub.merging.errors import ExpressionError, RecipeTooLarge
from adapterhub.merging.recipes.nodes import (
    Call,
    Composed,
    Delta,
    Node,
    Recipe,
    Ref,
    Stack,
    Weighted,
    children,
    total,
    weighted,
)
from adapterhub.merging.recipes.values import ANY, Scalar, Schedule, Value, is_numeric, schedule, unquoted


@dataclass(frozen=True)
class Limits:
    """How much text is read. characters of the whole; depth of brackets; terms: names, calls and schedules together."""

    characters: int = 100_000
    depth: int = 64
    terms: int = 2048


DEFAULT_LIMITS = Limits()

_WORDS = {
    "NAME": "a name",
    "QUOTED": "a name",
    "NUMBER": "a number",
    "SIGN": "' + ' or ' - '",
    "STAR": "'*'",
    "LPAR": "'('",
    "RPAR": "')'",
    "COMMA": "','",
    "COLON": "':'",
    "SEMICOLON": "';'",
    "EQUAL": "'='",
    "LSQB": "a number",
    "LBRACE": "a number",
    "RSQB": "']'",
    "RBRACE": "'}'",
    "LAYERS": "layers such as [0:16]",
    "$END": "the end",
}
"""Terminals of the grammar in the words of messages."""


def parse(text: str, *, limits: Limits = DEFAULT_LIMITS) -> Recipe:
    """The recipe that an expression means. Names are not looked up.

    Raises ExpressionError, which says where and what was expected, and RecipeTooLarge past the limits.
    """
    if len(text) > limits.characters:
        raise RecipeTooLarge(f"the expression has {len(text)} characters; at most {limits.characters} are read")
    _check_depth(text, limits)
    try:
        root: Node = _grammar().parse(text)  # type: ignore[assignment]  # the embedded builder gives nodes, no tree
    except UnexpectedInput as error:
        raise _explained(text, error) from error
    except _Problem as error:
        raise ExpressionError(text, error.position, error.sentence) from error
    check_terms(root, limits)
    return Recipe(root, text)


def check_terms(root: Node, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raises RecipeTooLarge for a recipe of more names, calls and schedules than are computed."""
    count = sum(1 for _ in _leaves(root))
    if count > limits.terms:
        raise RecipeTooLarge(f"the recipe has {count} terms; at most {limits.terms} are computed")


def _check_depth(text: str, limits: Limits) -> None:
    depth = 0
    for character in re.sub(r'"(\\.|[^"\\])*"', "", text):
        depth += (character == "(") - (character == ")")
        if depth > limits.depth:
            raise RecipeTooLarge(f"brackets are nested deeper than {limits.depth}")


def _leaves(node: Node) -> Iterable[object]:
    match node:
        case Ref():
            yield node
        case Call(parameters=parameters) | Composed(parameters=parameters):
            yield from (node, *(value for _, value in parameters if isinstance(value, Schedule)))
        case Weighted(schedules=schedules):
            yield from schedules
    for child in children(node):
        yield from _leaves(child)


@cache
def _grammar() -> Lark:
    text = resources.files(__package__).joinpath("expression.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", maybe_placeholders=True, transformer=_Builder())


class _Problem(Exception):
    """What is wrong with a part of the text that the grammar allows, and where."""

    def __init__(self, token: Token, sentence: str) -> None:
        super().__init__(sentence)
        self.position = token.start_pos or 0
        self.sentence = sentence


class _Builder(Transformer[Token, Node]):
    """Makes nodes while the parser runs, so depth costs no stack. Its methods are named as the grammar's rules."""

    def sum(self, found: list[Any]) -> Node:
        signed = zip(found[1::2], found[2::2], strict=True)
        return total([found[0], *(weighted(-1.0, node) if sign == "-" else node for sign, node in signed)])

    def weighted(self, found: list[Any]) -> Node:
        *factors, node = found
        for factor in reversed(factors):
            token, value = (factor.token, factor.value) if isinstance(factor, _Placed) else (factor, _number(factor))
            if not is_numeric(value):
                raise _Problem(token, "a weight is made of numbers")
            node = weighted(1.0, node, [value]) if isinstance(value, Schedule) else weighted(float(value), node)
            if isinstance(node, Weighted) and not math.isfinite(node.weight):
                raise _Problem(token, "the factors multiply to more than a number holds")
        result: Node = node
        return result

    def chain(self, found: list[Any]) -> Node:
        return total(found)

    def reference(self, found: list[Any]) -> Node:
        token, layers = found
        name = unquoted(token) if token.type == "QUOTED" else str(token)
        try:
            ref = Ref.of(name)
        except ExpressionError as error:
            raise _Problem(token, error.problem) from error
        if layers is None:
            return ref
        first, end = map(int, layers[1:-1].split(":"))
        if first >= end:
            raise _Problem(layers, f"{layers} are no layers; the first and one past the last are expected")
        return replace(ref, layers=(first, end))

    def parameter(self, found: list[Any]) -> tuple[Token, Any]:
        name, value = found
        return name, value.value if isinstance(value, _Placed) else _scalar(value)

    def member(self, found: list[Any]) -> tuple[Token, Any]:
        name, node = found
        return name, _Member(node)

    def gradient(self, found: list[Token]) -> "_Placed":
        return _placed(found[0], [(ANY, [_scalar(one) for one in found])])

    def case(self, found: list[Any]) -> tuple[Token, str, list[Scalar]]:
        name, value = found
        part = unquoted(name) if name.type == "QUOTED" else str(name)
        return name, part, value.points if isinstance(value, _Placed) else [_scalar(value)]

    def choice(self, found: list[tuple[Token, str, list[Scalar]]]) -> "_Placed":
        return _placed(found[0][0], [(part, points) for _, part, points in found])

    def call(self, found: list[Any]) -> Node:
        method, base, *arguments = found
        if "/" in method or "@" in method:
            raise _Problem(method, f"{method} is no merge method; a plain name is expected")
        inputs = tuple(one for one in arguments if not isinstance(one, tuple))
        parameters: dict[str, Any] = {}
        for name, value in (one for one in arguments if isinstance(one, tuple)):
            if name in parameters:
                raise _Problem(name, f"{name} is given twice")
            parameters[str(name)] = value
        if not inputs:
            raise _Problem(method, f"{method} needs at least one input")
        if method in operators():
            return self._composed(method, base, inputs, parameters)
        for name, value in parameters.items():
            if isinstance(value, _Member):
                raise _Problem(method, f"{method}: {name} is {value.node}; a number or word is expected")
        if method == "delta":
            return self._delta(method, base, inputs, parameters)
        if method == "stack":
            if base is not None or parameters:
                raise _Problem(method, "stack takes slices alone, the lowest first")
            return Stack(inputs)
        return Call(str(method), base, inputs, tuple(sorted(parameters.items())))

    def _composed(self, method: Token, base: Node | None, inputs: tuple[Node, ...], parameters: dict[str, Any]) -> Node:
        """The call of an operator; what stands behind the name of a role is a member, though it looks like a word."""
        roles = operators()[method].named
        named = tuple((role, _as_member(method, role, parameters.pop(role))) for role in roles if role in parameters)
        for name, value in parameters.items():
            if isinstance(value, _Member):
                raise _Problem(method, f"{method} takes no model as {name}; {operators()[method].usage}")
        return Composed(str(method), base, inputs, named, tuple(sorted(parameters.items())))

    def _delta(self, method: Token, base: Node | None, inputs: tuple[Node, ...], parameters: dict[str, Any]) -> Node:
        names = [one for one in inputs if isinstance(one, Ref)]
        if base is not None or parameters or len(inputs) != 2 or len(names) != 2:
            raise _Problem(method, "delta takes the names of two models: delta(M, B)")
        return Delta(*names)


@dataclass(frozen=True)
class _Member:
    """An expression given by name, such as one of an operator's models."""

    node: Node


def _as_member(method: Token, role: str, value: Any) -> Node:
    if isinstance(value, _Member):
        return value.node
    if not isinstance(value, str):
        raise _Problem(method, f"{method}: {role} is {value}; a model is expected")
    try:
        return Ref.of(value)
    except ExpressionError as error:
        raise _Problem(method, error.problem) from error


@dataclass(frozen=True)
class _Placed:
    """A value of several parts. token: the first of them; points: those of a gradient, as written."""

    token: Token
    value: Value
    points: list[Scalar]


def _placed(token: Token, cases: list[tuple[str, list[Scalar]]]) -> _Placed:
    try:
        return _Placed(token, schedule(cases), cases[0][1])
    except ValueError as error:
        raise _Problem(token, str(error)) from error


def _scalar(token: Token) -> Scalar:
    """The number, word or truth value that a token is."""
    if token.type == "NUMBER":
        return _number(token)
    if token.type == "QUOTED":
        return unquoted(token)
    return {"true": True, "false": False}.get(token, str(token))


def _number(token: Token) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise _Problem(token, f"{token} is too large for a number")
    return value


def _explained(text: str, error: UnexpectedInput) -> ExpressionError:
    """The parser's error in words: what was found, and what could have stood there."""
    is_at_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    position = len(text) if is_at_end else error.pos_in_stream or 0
    found = "the end" if is_at_end else repr(text[position : position + 1])
    if found in ("'+'", "'-'"):
        return ExpressionError(text, position, f"{found} needs a space on both sides")
    expected = error.expected if isinstance(error, UnexpectedToken) else getattr(error, "allowed", None)
    words = sorted({_WORDS.get(name, name) for name in expected or ()})
    return ExpressionError(text, position, f"found {found}, expected {' or '.join(words)}")
