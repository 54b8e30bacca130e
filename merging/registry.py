"""Registries of variants: what a merge method, term, strategy or analysis says of itself, and the scan that finds them.

A variant is one file of its package, which holds its spec as a module-level value. The package's own `__init__` calls
`scan`, lazily, so nothing is imported before somebody asks; other people's packages join through entry points.
Nothing here imports a variant, nor torch: specs are listed without it.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from adapterhub.merging.errors import InvalidParameter, UnknownMethod

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.folders import Folder
    from adapterhub.merging.ops.lowrank import Factors
    from adapterhub.merging.ops.selection import Threshold


class Named(Protocol):
    """What every spec has: the key of its registry, as written in expressions, on the command line and in files."""

    @property
    def name(self) -> str: ...


Spec = TypeVar("Spec", bound=Named)


def scan(package: str, spec_type: type[Spec]) -> Mapping[str, Spec]:
    """All specs of one type in the modules of `package` and in other people's, sorted by name.

    Others name their modules by entry points of the group "adapterhub.<last part of package>".
    """
    names = [one.name for one in pkgutil.iter_modules(importlib.import_module(package).__path__, package + ".")]
    modules = [importlib.import_module(name) for name in sorted(names)]
    modules += [one.load() for one in entry_points(group="adapterhub." + package.rpartition(".")[2])]
    found: dict[str, Spec] = {}
    for module in modules:
        for spec in vars(module).values():
            if isinstance(spec, spec_type):
                assert found.setdefault(spec.name, spec) is spec, f"{spec.name} is registered twice"
    return MappingProxyType(dict(sorted(found.items())))


# ---- parameters ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter as forms, help texts and schemas show it. low, high: the range; choices: instead of a range."""

    name: str
    type: Literal["float", "int", "bool", "str"]
    default: float | bool | str
    help: str
    low: float | None = None
    high: float | None = None
    is_low_open: bool = False
    is_high_open: bool = False
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The allowed values in words: "(0, 1]", "weights or count", "any number"."""
        if self.choices:
            return " or ".join(self.choices)
        if self.type == "bool":
            return "true or false"
        left = "(" if self.is_low_open or self.low is None else "["
        right = ")" if self.is_high_open or self.high is None else "]"
        low, high = ("-∞" if self.low is None else f"{self.low:g}"), ("∞" if self.high is None else f"{self.high:g}")
        return f"{left}{low}, {high}{right}"

    def check(self, value: Any, owner: str) -> float | bool | str:
        """`value` in the parameter's type. Raises InvalidParameter when it is of another type or outside the range."""
        converted = self._convert(value)
        if converted is None or (self.choices and converted not in self.choices) or not self._is_in_range(converted):
            raise InvalidParameter(f"{owner}: {self.name} is {value!r}; expected {self.type} in {self.range}")
        return converted

    def _convert(self, value: Any) -> float | bool | str | None:
        if self.type == "bool" or isinstance(value, bool):
            return value if self.type == "bool" and isinstance(value, bool) else None
        if self.type == "str":
            return value if isinstance(value, str) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        if self.type == "int":
            return int(value) if value == int(value) else None
        return float(value)

    def _is_in_range(self, value: float | bool | str) -> bool:
        if isinstance(value, str | bool):
            return True
        is_above = self.low is None or value > self.low or (value == self.low and not self.is_low_open)
        return is_above and (self.high is None or value < self.high or (value == self.high and not self.is_high_open))


def parameter(
    default: float | bool | str,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    is_low_open: bool = False,
    is_high_open: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a parameters dataclass that carries its default, range and help.

    The field's annotation must be float, int, bool or str, as a plain name. Example:
    `density: float = parameter(1.0, "fraction of entries kept", low=0, high=1, is_low_open=True)`.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "low": low,
            "high": high,
            "is_low_open": is_low_open,
            "is_high_open": is_high_open,
            "choices": choices,
        },
    )


def parameters_of(owner: type) -> tuple[Parameter, ...]:
    """The parameters of a dataclass whose fields were made by `parameter`, in order."""
    found = []
    for one in fields(owner):
        type_name = one.type if isinstance(one.type, str) else getattr(one.type, "__name__", "")
        assert type_name in ("float", "int", "bool", "str"), f"{owner.__name__}.{one.name} is a {type_name}"
        assert one.default is not MISSING, f"{owner.__name__}.{one.name} has no default"
        found.append(Parameter(one.name, type_name, one.default, **one.metadata))  # type: ignore[arg-type]
    return tuple(found)


def make_parameters(owner: type, values: Mapping[str, Any], called: str) -> Any:
    """An instance of the dataclass `owner` from values by name, each checked; what is not given has its default.

    called: what messages call it, such as the method's name. Raises InvalidParameter, naming a near parameter.
    """
    known = {one.name: one for one in parameters_of(owner)}
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise InvalidParameter(f"{called} has no parameter {name!r}; {hint}")
    return owner(**{name: known[name].check(value, called) for name, value in values.items()})


# ---- specs -----------------------------------------------------------------------------------------------------------


TRANSPOSE = Parameter("transpose", "bool", False, "whether the site stores (in, out), and the fields (out, in)")
"""The option of terms that read GPT-2's Conv1D and embeddings."""


@dataclass(frozen=True)
class NoParameters:
    """The parameters of what has none."""


@dataclass(frozen=True)
class Measured:
    """What one patch carries of its data at one tensor, for methods that ask for it; see `statistics.py`.

    gram: the mean of x xᵀ over samples, (n, n) float64. fisher: mean squared gradients, float64, of the tensor's shape.
    Either is None where it is not the one asked for, and for a tensor that is no linear layer's. count: samples of the
    Gram. is_transposed: whether the tensor is stored (in, out). fisher_norm: of all the patch's Fisher tensors.
    """

    gram: torch.Tensor | None = None
    fisher: torch.Tensor | None = None
    count: int = 0
    is_transposed: bool = False
    fisher_norm: float = 1.0


@dataclass(frozen=True)
class MergeSite:
    """What a method may know of the tensor it merges, besides the deltas.

    name: of the tensor. base: its values before, in the deltas' shape, dtype and device; not to be modified. digests:
    one an input, which key random numbers. depth: l / (L - 1) of layer l of L, None outside layers. told: where it puts
    what the run's report says of the tensor besides norms, by name. measured: one an input, for those that take it.
    """

    name: str
    base: torch.Tensor
    digests: tuple[str, ...]
    depth: float | None = None
    told: dict[str, float] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()


class Piece(NamedTuple):
    """Whole rows of one tensor, for methods that need not have all of it. start: their first entry, row-major.

    base: the base's values (rows, columns), not to be modified. deltas: one an input, each of that shape, contiguous,
    float32 or float64, on the CPU; the method may write to them. A tensor of fewer than two dimensions is one piece.
    """

    start: int
    base: torch.Tensor
    deltas: Sequence[torch.Tensor]


@dataclass(frozen=True)
class Combination:
    """A merged delta that is the same weighted sum of the base and the deltas in every piece. It makes a piece's."""

    of_base: float
    of_deltas: tuple[float, ...]

    def __call__(self, piece: Piece) -> torch.Tensor:
        merged = piece.base.mul(self.of_base)
        for factor, delta in zip(self.of_deltas, piece.deltas, strict=True):
            merged.add_(delta, alpha=factor)
        return merged


class Pieces(Protocol):
    """One tensor's deltas as pieces in order, computed anew each time they are iterated. The rest is as in MergeSite.

    shape: of the tensor; a piece's rows are along its first dimension. limits: for each input where its largest entries
    end in the whole patch, one threshold for each count that `MethodSpec.global_counts` gave; () where it gave none.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def digests(self) -> tuple[str, ...]: ...

    @property
    def depth(self) -> float | None: ...

    @property
    def limits(self) -> Sequence[Sequence[Threshold]]: ...

    def products(self) -> tuple[float, float, float]:
        """W · W, W · V and V · V of the base W and of V, the base with its first delta, in float64."""
        ...

    def __iter__(self) -> Iterator[Piece]: ...


@dataclass(frozen=True)
class MethodSpec:
    """One merge method.

    function: `(deltas, weights, parameters) -> delta`: deltas and result float32 (float64 for float64 bases) of one
    shape, the base not included; weights one number a delta. takes_site: it takes a MergeSite as its fourth argument.
    inputs: fewest and most of them, None for any number. takes_weights: whether a weight other than 1 means something.
    on_factors: `(deltas as products, weights, parameters)` gives the same as a product, of one that works on factors;
    with the site as its fourth argument where takes_site. takes_trained: its function is given the factors of LoRAs as
    they were trained (`ops.lowrank.Trained`, None for an input that leaves the site alone) in place of deltas, and
    gives a product; other inputs are refused.
    acts_on: `(names of tensors that its inputs change, parameters)` of one that leaves some at the base: the others.
    statistics: what of its data every input has to carry, "gram" or "fisher"; "" for nothing.
    needed: fewest inputs at these parameters, where that depends on them.
    by_pieces: `(pieces, weights, parameters)` looks at a tensor as often as it must, and gives the function that makes
    the merged delta of a piece, in any shape of its entries, called in their order: the same as `function`, in memory
    that does not grow with the tensor. Where that is a `Combination`, models take fewer passes.
    global_counts: `(parameters, entries of a whole patch)` says how many of the largest of them `by_pieces` looks for;
    none where the parameters ask for no more than a tensor.
    check: raises InvalidParameter for parameters that do not go together, before any work.
    is_experimental: known from its paper alone. moves_base: its result is not zero where no input changes anything.
    parameters: a frozen dataclass whose fields `parameter` made. coefficients: `(weights, parameters)` of one whose
    result is a weighted sum of the deltas whatever they are: that sum's factors, so it can stay in patch space. Raises
    InvalidParameter where the two do not go together. laws: names of those it obeys whatever its parameters
    are, besides those of all methods; laws_at: of others, and parameters at which it obeys them.
    is_sequential: each delta is taken at the base plus the weighted deltas before it, instead of all at the base.
    """

    name: str
    title: str
    summary: str
    source: str
    function: Callable[..., Any]
    parameters: type = NoParameters
    laws: frozenset[str] = frozenset()
    laws_at: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    coefficients: Callable[[Sequence[float], Any], list[float]] | None = None
    is_sequential: bool = False
    takes_site: bool = False
    inputs: tuple[int, int | None] = (1, None)
    takes_weights: bool = True
    is_experimental: bool = False
    moves_base: bool = False
    on_factors: Callable[..., Factors] | None = None
    takes_trained: bool = False
    statistics: Literal["", "gram", "fisher"] = ""
    acts_on: Callable[[Sequence[str], Any], frozenset[str]] | None = None
    needed: Callable[[Any], int] = lambda parameters: 0
    by_pieces: Callable[[Pieces, Sequence[float], Any], Callable[[Piece], torch.Tensor]] | None = None
    global_counts: Callable[[Any, int], Sequence[int]] | None = None
    check: Callable[[Any], None] = lambda parameters: None

    @property
    def is_linear(self) -> bool:
        return self.coefficients is not None

    def merge(
        self, deltas: Sequence[torch.Tensor], weights: Sequence[float], parameters: Any, site: MergeSite
    ) -> torch.Tensor:
        """The function's result, of one that takes deltas. Raises InvalidParameter for what it does not take."""
        merged: torch.Tensor = self.function(deltas, weights, parameters, *self._told(site))
        return merged

    def merge_factors(
        self, products: Sequence[Any], weights: Sequence[float], parameters: Any, site: MergeSite
    ) -> Factors:
        """The result as a product, of products or, where takes_trained, of factors as trained."""
        function = self.function if self.takes_trained else self.on_factors
        assert function is not None  # who calls this has looked
        merged: Factors = function(products, weights, parameters, *self._told(site))
        return merged

    def _told(self, site: MergeSite) -> list[MergeSite]:
        return [site] if self.takes_site else []

    def check_inputs(self, weights: Sequence[float], parameters: Any) -> None:
        """Raises InvalidParameter for a number of inputs, or weights, that the method does not take."""
        fewest, most = max(self.inputs[0], self.needed(parameters)), self.inputs[1]
        if len(weights) < fewest or (most is not None and len(weights) > most):
            wanted = str(fewest) if most == fewest else f"{fewest} or more" if most is None else f"{fewest} to {most}"
            raise InvalidParameter(f"{self.name}: has {len(weights)} inputs after its base; it takes {wanted}")
        if not self.takes_weights and any(weight != 1.0 for weight in weights):
            raise InvalidParameter(f"{self.name}: takes no weights, and found {', '.join(f'{w:g}' for w in weights)}")


@dataclass(frozen=True)
class Part:
    """One term of one site with its tensors read: what a term's file computes with.

    weight: its factor in the whole recipe times the term's own scale.
    """

    fields: Mapping[str, torch.Tensor]
    weight: float
    options: Mapping[str, Any] = field(default_factory=dict)


class Apply(Protocol):
    """Adds (or puts) the prepared terms to rows [start, stop) of a site seen as a matrix; changes `tile` in place."""

    def __call__(self, tile: torch.Tensor, start: int, stop: int) -> None: ...


FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Dtypes, by their safetensors names, that a term's numbers may have."""


@dataclass(frozen=True)
class StoredField:
    """One tensor of a term as the native format stores it; `stored` makes them.

    sizes: of its dimensions, each a number or a name; equal names in one term are equal sizes, and further dimensions
    count into the last. Known names: "out" and "in" of the delta, which are W's rows and the product of its other
    dimensions, exchanged where the option transpose is true; "n", W's entries; "bytes", ceil(n / 8). ("W",) alone is
    W's own shape, transposed with that option. None: a form that only other formats hold. dtypes: which it may have.
    is_read: whether `bad_value` is given its values although they are floats.
    """

    sizes: tuple[str | int, ...] | None
    dtypes: frozenset[str] = FLOATS
    is_optional: bool = False
    is_read: bool = False


def stored(
    *sizes: str | int, dtypes: Sequence[str] = (), is_optional: bool = False, is_read: bool = False
) -> StoredField:
    """A field of a term in the native format; dtypes () are the floats."""
    return StoredField(sizes, frozenset(dtypes) or FLOATS, is_optional, is_read)


ELSEWHERE = StoredField(None, is_optional=True)
"""A field that only other formats hold."""


@dataclass(frozen=True)
class Stored:
    """One term of a native patch, as far as its header goes.

    shape: W's. fields: shapes by name, sizes past a field's last one multiplied into it. sizes: by their names.
    """

    shape: tuple[int, ...]
    fields: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    options: Mapping[str, Any]


def _no_misfit(term: Stored) -> str | None:
    return None


def _no_bad_value(term: Stored, values: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class TermSpec:
    """One term: what a patch may do to one site.

    fields: its tensors by name, the optional ones among them; the file's docstring has shapes and options.
    effect: "additive" adds a delta that does not depend on W; "affine" changes the W it is given; "replace" puts values
    in W's place. order: additive terms of a smaller order act first on a site; the others act in the patch's own order,
    replacing ones first of all.
    prepare: `(parts, W)` gives the function that folds these terms of one site at once; W holds the base's values, is
    not modified, and only terms that are not additive may read it.
    norm: `(part, shape of W)` gives the Frobenius norm of the delta; None where it depends on W.
    factors: `(part, shape of W)` gives the same delta as float32 factors left (n, r) @ right (r, m) of W as a matrix;
    None for a term that has no such exact form, and for one whose delta depends on W.
    options: what the native format may say of it besides its scale. misfit: what the sizes of fields do not tell, as a
    sentence; None where they fit. bad_value: the same for values, given as numpy arrays
    by field: those that are no floats, and float64 of those that its field says.
    is_exact: whether it stands for stored bits, so that it acts alone on its site and with weight 1.
    factor_sizes: (n, r, m) of those factors, `(shapes of the fields, options)`; there where `factors` is.
    entries: `(part, shape of W)` gives the same delta as flat row-major positions, int64 (nnz,), and what is added
    there, float32 (nnz,); None for a term that changes more than a few entries, or whose delta depends on W.
    entry_count: nnz, `(shapes of the fields)`; there where `entries` is.
    """

    name: str
    summary: str
    fields: Mapping[str, StoredField]
    effect: Literal["additive", "affine", "replace"]
    order: int
    prepare: Callable[[Sequence[Part], torch.Tensor], Apply]
    norm: Callable[[Part, Sequence[int]], float | None]
    factors: Callable[[Part, Sequence[int]], tuple[torch.Tensor, torch.Tensor]] | None = None
    options: tuple[Parameter, ...] = ()
    misfit: Callable[[Stored], str | None] = _no_misfit
    bad_value: Callable[[Stored, Mapping[str, Any]], str | None] = _no_bad_value
    is_exact: bool = False
    factor_sizes: Callable[[Mapping[str, Sequence[int]], Mapping[str, Any]], tuple[int, int, int]] | None = None
    entries: Callable[[Part, Sequence[int]], tuple[torch.Tensor, torch.Tensor]] | None = None
    entry_count: Callable[[Mapping[str, Sequence[int]]], int] | None = None

    @property
    def is_additive(self) -> bool:
        return self.effect == "additive"


@dataclass(frozen=True)
class StrategySpec:
    """One way to carry a patch to another base. function: as the transfer package documents it."""

    name: str
    title: str
    summary: str
    source: str
    function: Callable[..., Any]
    parameters: type = NoParameters
    laws: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RuntimeSpec:
    """How patches of one kind that cannot become weights act on a live model. name: the patch kind's.

    attach: `(model, folder, path, weight)` changes a transformers model of the patch's base, in evaluation mode, so
    that its forward pass and `generate` obey the patch, and gives the function that takes it off again: then every
    module, hook, parameter and attribute of the model is what it was. The base's tensors are never written to.
    weight: the patch's factor where the kind has one, else 1.0 alone is accepted. Raises InvalidPatch, UnknownSite,
    ShapeMismatch, and NotFoldable for a weight that the kind does not have; the model is then untouched.
    """

    name: str
    summary: str
    source: str
    attach: Callable[[Any, Folder, str, float], Callable[[], None]]


@dataclass(frozen=True)
class OperatorSpec:
    """One way to compose models while they decode: at each step their logits become those of one model.

    function: `(logits, weights, parameters) -> scores`: logits (n, vocabulary), float32 or float64, finite, one row a
    member in the order first, named, others; not modified. weights: one a member of the others. scores: (vocabulary,)
    in the same dtype, whose softmax is the composed distribution; -inf for a token that is ruled out.
    first: the role of the member before ";", "" where there is none. named: roles that are given by name. others: the
    role of the rest, and how few and many they may be, None for any number. takes_weights: whether a weight other than
    1 of one of the others means something.
    check: raises InvalidParameter for weights and parameters that do not go together.
    """

    name: str
    title: str
    summary: str
    source: str
    function: Callable[[torch.Tensor, Sequence[float], Any], torch.Tensor]
    others: str
    first: str = ""
    named: tuple[str, ...] = ()
    count: tuple[int, int | None] = (1, None)
    takes_weights: bool = False
    parameters: type = NoParameters
    check: Callable[[Sequence[float], Any], None] = lambda weights, parameters: None

    @property
    def usage(self) -> str:
        """How it is written: "proxy(large; expert, ..., anti=NAME, alpha=1)"."""
        others = [self.others] if self.count[1] == 1 else [self.others, "..."]
        told = [f"{one.name}={_written(one.default)}" for one in parameters_of(self.parameters)]
        arguments = ", ".join([*others, *(f"{role}=NAME" for role in self.named), *told])
        return f"{self.name}({self.first}; {arguments})" if self.first else f"{self.name}({arguments})"


def _written(value: float | bool | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class AnalysisSpec:
    """One analysis of tensors. function: as the analysis package documents it."""

    name: str
    title: str
    summary: str
    source: str
    function: Callable[..., Any]
    parameters: type = NoParameters


def find_method(name: str, known: Mapping[str, MethodSpec]) -> MethodSpec:
    """The method `name` of `known`. Raises UnknownMethod, which names a near one."""
    if name not in known:
        near = get_close_matches(name, known, 1)
        raise UnknownMethod(name, sorted(known), near[0] if near else None)
    return known[name]
