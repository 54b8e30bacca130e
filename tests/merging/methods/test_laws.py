"""Laws that every registered merge method keeps, as far as its spec claims them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adapterhub.merging.methods import methods
from adapterhub.merging.ops.lowrank import Trained
from adapterhub.merging.ops.selection import Threshold
from adapterhub.merging.ops.tensors import as_matrix
from adapterhub.merging.registry import Measured, MergeSite, MethodSpec, Piece, parameters_of

pytestmark = pytest.mark.slow

SHAPES = [(1,), (7,), (1, 9), (9, 1), (0,), (0, 4), (33, 17), (3, 2, 5), ()]


def random_deltas(count: int, shape: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def merge(
    spec: MethodSpec,
    deltas: list[torch.Tensor],
    weights: list[float] | None = None,
    *,
    digests: list[str] | None = None,
    **told: Any,
) -> torch.Tensor:
    """What the method makes of as many of the deltas as it takes; told: parameters, the others at their defaults."""
    count = len(deltas) if spec.inputs[1] is None else min(len(deltas), spec.inputs[1])
    weights = weights if weights is not None and spec.takes_weights else [1.0] * len(deltas)
    names = digests or [f"sha256:{number}" for number in range(len(deltas))]
    base = random_deltas(1, tuple(deltas[0].shape), seed=9)[0].to(deltas[0].dtype)
    if spec.acts_on is not None and "model.layers.0.w" not in spec.acts_on(
        ["model.layers.0.w"], spec.parameters(**told)
    ):
        return torch.zeros_like(deltas[0])
    measured = tuple(measured_of(spec, name, tuple(base.shape)) for name in names[:count])
    site = MergeSite("model.layers.0.w", base, tuple(names[:count]), 0.0, measured=measured)
    if spec.takes_trained:
        factors = [trained(delta) for delta in deltas[:count]]
        left, right = spec.merge_factors(factors, weights[:count], spec.parameters(**told), site)
        return (left @ right).to(deltas[0].dtype).view(deltas[0].shape)
    return spec.merge(deltas[:count], weights[:count], spec.parameters(**told), site)


def measured_of(spec: MethodSpec, name: str, shape: tuple[int, ...]) -> Measured:
    """What a patch of this name carries of its data, where the method asks for it."""
    seed = 100 + sum(name.encode())
    if spec.statistics == "gram" and len(shape) == 2:
        (inputs,) = random_deltas(1, (2 * shape[1] + 1, shape[1]), seed)
        return Measured(gram=inputs.double().T @ inputs.double() / len(inputs), count=seed)
    if spec.statistics == "fisher":
        return Measured(fisher=random_deltas(1, shape, seed)[0].double().square(), fisher_norm=float(seed))
    return Measured()


def trained(delta: torch.Tensor) -> Trained:
    """The delta as a LoRA of full rank; that of nothing is one before training, whose B is zero and whose A is not."""
    matrix = delta.flatten(1).double()
    rank = min(matrix.shape)
    if not delta.any():
        return Trained(
            random_deltas(1, (rank, matrix.shape[1]), seed=5)[0].double(), matrix.new_zeros(len(delta), rank), 2
        )
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Trained(vh, u * s / 2, 2)


@pytest.fixture(params=sorted(methods()))
def spec(request: pytest.FixtureRequest) -> MethodSpec:
    return methods()[request.param]


def is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def identity(spec: MethodSpec, shape: tuple[int, ...] = (8, 8), **told: Any) -> bool:
    """One patch with weight 1 comes back."""
    (delta,) = random_deltas(1, shape)
    return is_near(merge(spec, [delta], **told), delta)


def commutative(spec: MethodSpec, **told: Any) -> bool:
    """The order of patches does not matter."""
    deltas, weights = random_deltas(3, (33, 17)), [0.5, 0.25, 1.5]
    if spec.inputs[1] is not None:
        deltas, weights = deltas[: spec.inputs[1]], weights[: spec.inputs[1]]
    names = [f"sha256:{number}" for number in range(len(deltas))]
    merged = merge(spec, deltas, weights, digests=names, **told)
    return is_near(merge(spec, deltas[::-1], weights[::-1], digests=names[::-1], **told), merged)


def neutral_zero(spec: MethodSpec, **told: Any) -> bool:
    """A patch of nothing changes nothing."""
    deltas = random_deltas(2, (8, 8))
    merged = merge(spec, deltas, [0.5, 0.7], **told)
    return is_near(merge(spec, [*deltas, torch.zeros(8, 8)], [0.5, 0.7, 0.9], **told), merged)


def idempotent(spec: MethodSpec, **told: Any) -> bool:
    """A patch merged with itself comes back."""
    (delta,) = random_deltas(1, (8, 8))
    return is_near(merge(spec, [delta, delta], [0.5, 0.7], **told), delta)


LAWS = {law.__name__: law for law in (identity, commutative, neutral_zero, idempotent)}

_THIN: list[dict[str, Any]] = [{"density": 0.05}]
OTHERWISE: dict[str, list[dict[str, Any]]] = {
    "ties": [*_THIN, {"normalize": "count"}, {"normalize": "none"}, {"elect": "unweighted"}, {"tie": "majority"}],
    "core_space": _THIN,
    "knots": _THIN,
    "localize_and_stitch": [*_THIN, {"density": 1.0}],
    "ram": [{"epsilon": 0.7}],
    "ramplus_tl": [{"epsilon": 0.7, "alpha": 2.0}],
    "sce": [{"select_topk": 0.3}],
    "linear": [{"normalize": False}],
    "task_arithmetic": [{"normalize": True}, {"scale": 0.5}],
    "consensus": [{"needed": 1}, {"tall": 3.0}],
    "model_stock": [{"filter_wise": True}],
    "multislerp": [{"of": "weights"}],
    "passthrough": [{"scale": 1.5}],
    "nuslerp": [{"of": "weights"}, {"flatten": False}],
    "cabs": [{"n": 1, "m": 4}, {"n": 3, "m": 4}],
    "iso_cts": [{"common": 0.2}, {"common": 1.0}],
    "lines": [{"alpha": 1.0, "beta": 0.0}],
    "dare_linear": [{"density": 1.0}],
    "dare_ties": [{"density": 1.0, "normalize": True}],
    "della": [{"density": 1.0}],
    "della_linear": [{"density": 1.0}],
    "breadcrumbs": [{"density": 1.0}],
    "breadcrumbs_ties": [{"density": 1.0}],
    **{f"peft_{name}": _THIN for name in ("ties", "dare_linear", "dare_ties", "magnitude_prune")},
    **{
        f"peft_{name}_svd": [*_THIN, {"svd_rank": 2}]
        for name in ("ties", "dare_linear", "dare_ties", "magnitude_prune")
    },
    "peft_svd": [{"svd_rank": 2}],
    "regmean": [{"counts": True}, {"alpha": 0.0}],
    "fisher": [{"normalize": False}, {"floor": 0.0}],
    "reset": [{"half": "other"}],
    "deintrude": [{"eps": 1.0, "top": 0}],
    "emr": [{"task": 2}],
    "tall": [{"task": 2}, {"tall": 0.0}],
    "pcb": [{"density": 1.0, "clip": 0.0}],
    "robustmerge": [{"density": 1.0, "scale": 1.0}],
    "magmax": [{"scale": 0.5}],
    "tsv_m": [{"scale": 0.5}],
    "iso_c": [{"scale": 0.5}],
    "wudi": [{"scale": 0.5}],
}
"""Parameters beside the defaults at which laws are looked at: one that is claimed holds at all of them."""


DECOMPOSING = {"deintrude", "regmean"}
"""Methods that decompose matrices, besides those that work on factors."""


def takes_shape(spec: MethodSpec, shape: tuple[int, ...]) -> bool:
    """Whether tensors of the shape reach it: LoRAs as trained are on matrices."""
    return not spec.takes_trained or len(shape) > 1


def needs_one(spec: MethodSpec, told: dict[str, Any]) -> bool:
    """Whether one patch is enough at these parameters."""
    return spec.needed(spec.parameters(**told)) <= 1


def takes(spec: MethodSpec, law: str) -> bool:
    """Whether the method takes as many patches as the law is about."""
    fewest, most = spec.inputs
    if law == "commutative" and spec.is_sequential:
        return False  # each delta is taken after those before it, whatever is done with them then
    return fewest <= 1 if law == "identity" else most is None or (law != "neutral_zero" and most >= 2)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_holds_where_it_is_claimed_and_has_a_counter_example_where_not(spec: MethodSpec, law: str) -> None:
    if not takes(spec, law):
        assert law not in spec.laws
        return
    looked_at = [told for told in ({}, *OTHERWISE.get(spec.name, [])) if law != "identity" or needs_one(spec, told)]
    held = [LAWS[law](spec, **told) for told in looked_at]
    assert all(held) == (law in spec.laws)
    if law in spec.laws_at:
        assert law not in spec.laws
        assert LAWS[law](spec, **spec.laws_at[law])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_patch_with_weight_one_comes_back(spec: MethodSpec, shape: tuple[int, ...]) -> None:
    if takes_shape(spec, shape) and "identity" in {*spec.laws, *spec.laws_at}:
        assert identity(spec, shape, **spec.laws_at.get("identity", {}))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_stay_and_inputs_are_not_modified(
    spec: MethodSpec, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if not takes_shape(spec, shape):
        return
    deltas = [delta.to(dtype) for delta in random_deltas(3, shape)]
    before = [delta.clone() for delta in deltas]
    merged = merge(spec, deltas, [0.3, 0.3, 0.4])
    assert merged.shape == torch.Size(shape)
    assert merged.dtype == dtype
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, before, strict=True))


def test_the_same_call_gives_the_same_bytes_on_one_and_two_threads(spec: MethodSpec) -> None:
    deltas, weights = random_deltas(3, (256, 300)), [0.4, 0.4, 0.7]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = merge(spec, deltas, weights)
        torch.set_num_threads(2)
        two = merge(spec, deltas, weights)
    finally:
        torch.set_num_threads(threads)
    if spec.on_factors is None and not spec.takes_trained and spec.name not in DECOMPOSING:
        assert torch.equal(one, two)
    else:  # decompositions divide their work by threads; the engine gives every tensor one
        torch.testing.assert_close(one, two)


class Rows:
    """Deltas of one tensor, a few rows at a time."""

    def __init__(self, deltas: list[torch.Tensor], base: torch.Tensor, step: int) -> None:
        self.name, self.shape, self.depth = "model.layers.0.w", tuple(base.shape), 0.0
        self.digests = tuple(f"sha256:{number}" for number in range(len(deltas)))
        self.limits: list[list[Threshold]] = []
        self._deltas, self._base, self._step = [as_matrix(one) for one in deltas], as_matrix(base), step

    def products(self) -> tuple[float, float, float]:
        W = self._base.double().flatten()
        V = W + self._deltas[0].double().flatten()
        return float(W.dot(W)), float(W.dot(V)), float(V.dot(V))

    def __iter__(self) -> Iterator[Piece]:
        rows, columns = self._base.shape
        step = self._step if len(self.shape) > 1 else max(1, rows)
        for start in range(0, rows, step):
            deltas = [one[start : start + step].clone() for one in self._deltas]
            yield Piece(start * columns, self._base[start : start + step], deltas)


RESCALED: list[dict[str, Any]] = [{"rescale": "l1"}, {"rescale": "l2"}, {"rescale": "linf"}, {"density": 0.3}]
ELECTED: list[dict[str, Any]] = [
    {"elect": "unweighted"},
    {"tie": "majority"},
    {"elect": "unweighted", "tie": "majority", "density": 0.6},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7,), (1, 9), (9, 1), (0, 4), (33, 17), (6, 2, 5), ()], ids=str)
def test_by_pieces_is_what_the_whole_gives(spec: MethodSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if spec.by_pieces is None:
        return
    # few different magnitudes, so that the largest end among equal ones
    count = spec.inputs[1] or 3
    deltas = [(2 * one).round().to(dtype) / 3 for one in random_deltas(count, shape)]
    base = random_deltas(1, shape, seed=9)[0].to(dtype)
    weights = [0.5, -0.25, 1.5][:count] if spec.takes_weights else [1.0] * count
    names = {one.name for one in parameters_of(spec.parameters)}
    for told in ({}, *OTHERWISE.get(spec.name, []), *RESCALED, *ELECTED, {"density": 0.4, "gamma": 0.3}):
        if not told.keys() <= names:
            continue
        parameters = spec.parameters(**told)
        pieces = Rows(deltas, base, 4)
        merged = spec.by_pieces(pieces, weights, parameters)
        found = [merged(piece).reshape(-1) for piece in pieces]
        site = MergeSite(pieces.name, base, pieces.digests, 0.0)
        expected = spec.merge(deltas, weights, parameters, site).reshape(-1)
        torch.testing.assert_close(torch.cat([*found, expected[:0]]), expected, rtol=2e-6, atol=2e-6)


def test_a_linear_method_is_the_sum_that_its_coefficients_say(spec: MethodSpec) -> None:
    if spec.coefficients is None:
        return
    deltas, weights = random_deltas(3, (16, 5)), [0.4, 0.4, 0.7]
    coefficients = spec.coefficients(weights, spec.parameters())
    expected = sum((c * d.double() for c, d in zip(coefficients, deltas, strict=True)), torch.zeros(16, 5).double())
    merged = merge(spec, deltas, weights)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6)


def test_every_method_says_where_it_comes_from(spec: MethodSpec) -> None:
    assert spec.source
    assert "Source:" in (spec.function.__doc__ or "")
    assert spec.name == spec.function.__module__.rpartition(".")[2]
