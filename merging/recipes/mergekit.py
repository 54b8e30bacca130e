"""mergekit's methods in our words: what each takes, its defaults, and which call of ours means the same.

A file for mergekit is read by these tables, so that it means what mergekit 0.1.5 makes of it; where a method of ours
has another default, the call says mergekit's. Parameters that differ from input to input become inner calls: TIES with
two densities is `ties(base; ties(a, density=0.6), ties(b, density=0.7))`, which is the same arithmetic.
Source: mergekit 0.1.5 `merge_methods` (names, scopes, defaults, contracts). Differs: random masks are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adapterhub.merging.methods import methods
from adapterhub.merging.recipes.values import Scalar
from adapterhub.merging.registry import parameters_of

Kind = Literal["number", "truth", "word"]


@dataclass(frozen=True)
class Setting:
    """One parameter of mergekit's. ours: our name of it. default: mergekit's, None where it must be given.

    words: what true and false are called here, where we have words for them. is_own: whether each input has its own.
    only: the one value that has a meaning here.
    """

    ours: str
    default: Scalar | None
    kind: Kind = "number"
    words: tuple[str, str] | None = None
    is_own: bool = False
    only: Scalar | None = None


@dataclass(frozen=True)
class Dialect:
    """How mergekit means one method.

    base: "apart": a base model must be named, and is no input; "input": it counts as any other; "optional": without one
    the models' weights are merged, with one what they have more than it. weights: which inputs have one, "all",
    "others", those that are no base, or "none". settings: by mergekit's name. inner, outer: with own parameters that
    differ from input to input, each input goes through `inner`, and the results through `outer`; outer_words: what
    `outer` calls true and false of normalize. weight: an input's where the file says none; None where it must.
    scales_base: whether without normalize the base's own weights are multiplied by the sum of the weights.
    """

    base: Literal["apart", "input", "optional"] = "apart"
    weights: Literal["all", "others", "none"] = "none"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    inner: str | None = None
    outer: str | None = None
    outer_words: tuple[str, str] | None = None
    weight: float | None = None
    scales_base: bool = False


_RESCALE = ("l1", "none")
_SHARES = ("weights", "none")


def _arithmetic(
    *,
    normalize: bool,
    words: tuple[str, str] | None = None,
    rescale: bool | None = None,
    inner: str | None = None,
    outer: str | None = None,
    own: Mapping[str, float] | None = None,
) -> Dialect:
    """One of the methods that sum deltas, pruned or not. rescale: its default where it has an effect. own: defaults."""
    settings = {
        "lambda": Setting("scale", 1.0),
        "normalize": Setting("normalize", normalize, "truth", words),
        **({} if rescale is None else {"rescale": Setting("rescale", rescale, "truth", _RESCALE)}),
        **{name: Setting(name, default, is_own=True) for name, default in (own or {}).items()},
    }
    is_signed = outer == "ties"
    return Dialect("apart", "others", settings, inner, outer, _SHARES if is_signed else None)


_DENSITY = {"density": 1.0}
_CRUMBS = {"density": 1.0, "gamma": 0.01}
_LIKELY = {"density": 1.0, "epsilon": 0.15}

DIALECTS: Mapping[str, Dialect] = {
    "arcee_fusion": Dialect(),
    "breadcrumbs": _arithmetic(normalize=False, inner="breadcrumbs", outer="task_arithmetic", own=_CRUMBS),
    "breadcrumbs_ties": _arithmetic(normalize=False, inner="breadcrumbs", outer="ties", own=_CRUMBS),
    "dare_linear": _arithmetic(
        normalize=False, rescale=True, inner="dare_linear", outer="task_arithmetic", own=_DENSITY
    ),
    "dare_ties": _arithmetic(normalize=False, rescale=True, inner="dare_linear", outer="ties", own=_DENSITY),
    "della": _arithmetic(normalize=True, rescale=True, inner="della_linear", outer="ties", own=_LIKELY),
    "della_linear": _arithmetic(
        normalize=False, rescale=True, inner="della_linear", outer="task_arithmetic", own=_LIKELY
    ),
    "karcher": Dialect("input", "none", {"max_iter": Setting("max_iter", 10.0), "tol": Setting("tol", 1e-5)}),
    "linear": Dialect("input", "all", {"normalize": Setting("normalize", True, "truth")}, scales_base=True),
    "model_stock": Dialect(settings={"filter_wise": Setting("filter_wise", False, "truth")}),
    "multislerp": Dialect(
        "optional",
        "others",
        {"normalize_weights": Setting("", True, "truth", only=True), "eps": Setting("eps", 1e-8)},
    ),
    "nearswap": Dialect(settings={"t": Setting("t", None)}),
    "nuslerp": Dialect(
        "optional",
        "others",
        {
            "nuslerp_flatten": Setting("flatten", True, "truth"),
            "nuslerp_row_wise": Setting("row_wise", False, "truth"),
        },
    ),
    "passthrough": Dialect("input", "none", {"scale": Setting("scale", 1.0, is_own=True)}),
    "ram": Dialect(settings={"epsilon": Setting("epsilon", 1e-5)}),
    "ramplus_tl": Dialect(
        settings={"r": Setting("r", 0.1), "alpha": Setting("alpha", 0.2), "epsilon": Setting("epsilon", 1e-5)}
    ),
    "sce": Dialect(settings={"select_topk": Setting("select_topk", 1.0)}),
    "slerp": Dialect(settings={"t": Setting("t", None)}),
    "task_arithmetic": _arithmetic(normalize=False),
    "ties": _arithmetic(normalize=True, words=_SHARES, inner="ties", outer="ties", own=_DENSITY),
}
"""mergekit's methods. A method of ours that it lacks takes a base apart, and its parameters by our names."""

IGNORED: Mapping[str, str] = {"int8_mask": "only changes how mergekit stores signs"}
"""Parameters of mergekit's that never change a result, and why."""

KNOWN = frozenset({"weight", "rescale", *IGNORED, *(name for one in DIALECTS.values() for name in one.settings)})
"""Every parameter of mergekit's, of whichever method: those that a method does not use are passed over, as it does."""


def dialect_of(method: str) -> Dialect:
    """How a method is told in a file; of our own methods all parameters are shared, under our names."""
    if method in DIALECTS:
        return DIALECTS[method]
    spec = methods()[method]
    kinds: Mapping[str, Kind] = {"bool": "truth", "str": "word"}
    found = {
        one.name: Setting(one.name, one.default, kinds.get(one.type, "number"))
        for one in parameters_of(spec.parameters)
        if one.name != "seed"
    }
    return Dialect("apart", "others" if spec.takes_weights else "none", found, weight=1.0)
