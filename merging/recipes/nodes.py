"""The parts of a recipe: frozen values that print as the expression they were read from.

`weighted` and `total` build them in the one form that text also gives: sums are flat, factors are multiplied out, a
factor of 1 is no factor.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from adapterhub.merging.errors import ExpressionError
from adapterhub.merging.recipes.values import NAME, NUMBER, Schedule, number_text, quoted, value_text

if TYPE_CHECKING:
    from adapterhub.merging.recipes.head_policy import Heads
    from adapterhub.merging.recipes.tokenizer import TokenizerPolicy


@dataclass(frozen=True, order=True)
class Ref:
    """An input by name. name: "ns/name"; revision: branch, tag or commit; path: sub-folder of the repository.

    layers: first and one past the last, of a model that stands in a stack.
    """

    name: str
    revision: str | None = None
    path: str = ""
    layers: tuple[int, int] | None = None

    @classmethod
    def of(cls, text: str) -> "Ref":
        """The reference that "ns/name", "ns/name@revision" or "ns/name/sub/folder@revision" means.

        A name without "/" stands for itself. Raises ExpressionError where a part is empty or leaves the repository.
        """
        address, at, revision = text.partition("@")
        parts = address.split("/")
        if at and not revision:
            raise ExpressionError(text, len(text), "a revision is expected after '@'")
        if any(part in ("", ".", "..") for part in parts) or not text.isprintable():
            raise ExpressionError(text, 0, f"{text!r} is no name; expected namespace/name")
        return cls("/".join(parts[:2]), revision or None, "/".join(parts[2:]))

    def __str__(self) -> str:
        text = self.address
        is_bare = NAME.fullmatch(text) and not NUMBER.fullmatch(text)
        name = text if is_bare else quoted(text)
        return name if self.layers is None else f"{name}[{self.layers[0]}:{self.layers[1]}]"

    @property
    def address(self) -> str:
        """Name, sub-folder and revision as one text, without quotes and layers."""
        text = f"{self.name}/{self.path}" if self.path else self.name
        return text if self.revision is None else f"{text}@{self.revision}"


@dataclass(frozen=True)
class Weighted:
    """weight times a part, times schedules, which differ from tensor to tensor. Built by `weighted`."""

    weight: float
    node: "Node"
    schedules: tuple[Schedule, ...] = ()

    def __str__(self) -> str:
        inner = f"({self.node})" if isinstance(self.node, Sum) else str(self.node)
        factors = [number_text(self.weight)] if self.weight != 1.0 or not self.schedules else []
        return "*".join([*factors, *map(str, self.schedules), inner])


@dataclass(frozen=True)
class Sum:
    """The sum of two parts or more. Built by `total`."""

    terms: tuple["Node", ...]

    def __str__(self) -> str:
        text = str(self.terms[0])
        for term in self.terms[1:]:
            if isinstance(term, Weighted) and term.weight < 0:
                positive = weighted(-term.weight, term.node, term.schedules)
                text += f" - ({positive})" if isinstance(positive, Sum) else f" - {positive}"
            else:
                text += f" + {term}"
        return text


@dataclass(frozen=True)
class Call:
    """A merge method on inputs. base: the model it starts from, None for the base of the whole recipe.

    parameters: (name, value) sorted by name; values are float, bool, str or Schedule.
    """

    method: str
    base: "Node | None"
    inputs: tuple["Node", ...]
    parameters: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        arguments = [str(one) for one in self.inputs]
        arguments += [f"{name}={value_text(value)}" for name, value in self.parameters]
        start = f"{self.base}; " if self.base is not None else ""
        return f"{self.method}({start}{', '.join(arguments)})"


@dataclass(frozen=True)
class Delta:
    """model - base: what one full model has more than another."""

    model: Ref
    base: Ref

    def __str__(self) -> str:
        return f"delta({self.model}, {self.base})"


@dataclass(frozen=True)
class Stack:
    """Slices on top of one another, the lowest first: each a merge of as many layers of each model. A whole recipe."""

    slices: tuple["Node", ...]

    def __str__(self) -> str:
        return f"stack({', '.join(map(str, self.slices))})"


@dataclass(frozen=True)
class Composed:
    """Models composed while they decode: a whole recipe, of which no merged result exists.

    first: the member before ";", None where the operator has none. others: the rest, each with its weight. named:
    members by their roles, in the operator's order. parameters: as those of a Call. `compositions.members_of` checks.
    """

    operator: str
    first: "Node | None"
    others: tuple["Node", ...]
    named: tuple[tuple[str, "Node"], ...] = ()
    parameters: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        arguments = [str(one) for one in self.others]
        arguments += [f"{role}={node}" for role, node in self.named]
        arguments += [f"{name}={value_text(value)}" for name, value in self.parameters]
        start = f"{self.first}; " if self.first is not None else ""
        return f"{self.operator}({start}{', '.join(arguments)})"


Node: TypeAlias = Ref | Weighted | Sum | Call | Delta | Stack | Composed


@dataclass(frozen=True)
class Form:
    """What a recipe file says of the result besides its sum.

    dtype: to which floating-point tensors of full models are rounded when they are read, and the result's where
    out_dtype does not say another; safetensors' names. as_kind: a patch kind to make instead of a model. tokenizer:
    whose vocabulary the result has. layers: how many layers its models have, where the file says it. heads: what
    becomes of the inputs' own heads.
    """

    dtype: str | None = None
    out_dtype: str | None = None
    as_kind: str | None = None
    tokenizer: "TokenizerPolicy | None" = None
    layers: int | None = None
    heads: "Heads | None" = None

    @property
    def result_dtype(self) -> str | None:
        """The result's dtype, None for that of each tensor."""
        return self.out_dtype or self.dtype


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Of an expression `str` gives text that parses to an equal one.

    text: as it was written. notes: sentences on what of it has no effect here. folders: by input, the folder of the
    writer's machine that a recipe file names it by. None of them is compared.
    """

    root: Node
    text: str = field(default="", compare=False)
    form: Form = Form()
    notes: tuple[str, ...] = field(default=(), compare=False)
    folders: tuple[tuple[Ref, str], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return str(self.root)

    def references(self) -> tuple[Ref, ...]:
        """Every input named, each once, in the order of the text."""
        named = self.form.tokenizer.references() if self.form.tokenizer is not None else ()
        return tuple(dict.fromkeys((*references_of(self.root), *named)))


def weighted(weight: float, node: Node, schedules: Iterable[Schedule] = ()) -> Node:
    """weight times schedules times node; no factor where it is 1, one number where the node has one already."""
    if isinstance(node, Weighted):
        return weighted(weight * node.weight, node.node, (*schedules, *node.schedules))
    ordered = tuple(sorted(schedules, key=str))
    return node if weight == 1.0 and not ordered else Weighted(weight, node, ordered)


def total(terms: Iterable[Node]) -> Node:
    """The sum of one node or more; sums among them are taken apart."""
    flat: list[Node] = []
    for term in terms:
        flat += term.terms if isinstance(term, Sum) else (term,)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def children(node: Node) -> Sequence[Node]:
    """The nodes right below one."""
    match node:
        case Weighted(node=inner):
            return (inner,)
        case Sum(terms=terms):
            return terms
        case Call(base=base, inputs=inputs):
            return inputs if base is None else (base, *inputs)
        case Delta(model=model, base=base_ref):
            return (model, base_ref)
        case Stack(slices=slices):
            return slices
        case Composed(first=first, others=others, named=named):
            return (*(() if first is None else (first,)), *others, *(member for _, member in named))
        case Ref():
            return ()


def rewritten(node: Node, put: Callable[[Ref], Node]) -> Node:
    """The node with `put(name)` in the place of each of its names.

    Raises ExpressionError where something else than a name would stand in delta().
    """
    match node:
        case Ref():
            return put(node)
        case Weighted(weight=weight, node=inner, schedules=schedules):
            below = rewritten(inner, put)
            return weighted(weight, below, schedules) if isinstance(below, Weighted) else replace(node, node=below)
        case Sum(terms=terms):
            return total([rewritten(one, put) for one in terms])
        case Call(base=base, inputs=inputs):
            start = rewritten(base, put) if base is not None else None
            return replace(node, base=start, inputs=tuple(rewritten(one, put) for one in inputs))
        case Delta(model=model, base=base_ref):
            names = [put(one) for one in (model, base_ref)]
            if not all(isinstance(one, Ref) for one in names):
                raise ExpressionError(str(node), 0, "delta takes the names of two models, and nothing in their place")
            return Delta(*(one for one in names if isinstance(one, Ref)))
        case Stack(slices=slices):
            return Stack(tuple(rewritten(one, put) for one in slices))
        case Composed(first=first, others=others, named=named):
            return replace(
                node,
                first=rewritten(first, put) if first is not None else None,
                others=tuple(rewritten(one, put) for one in others),
                named=tuple((role, rewritten(one, put)) for role, one in named),
            )


def references_of(node: Node) -> Iterator[Ref]:
    """Every reference in a node, in the order of the text."""
    if isinstance(node, Ref):
        yield node
    for child in children(node):
        yield from references_of(child)
