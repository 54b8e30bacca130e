"""Laws that every registered term keeps, and its values against a float64 formula."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.registry import Part
from adapterhub.merging.terms import terms

ROWS, COLUMNS = 12, 10
Example = tuple[Part, Callable[[torch.Tensor], torch.Tensor]]
"""A term's part and what it does to a float64 W, written as its formula."""


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lowrank(weight: float) -> Example:
    A, B, d = random(3, COLUMNS, seed=1, dtype=torch.bfloat16), random(ROWS, 3, seed=2), random(3, seed=3)
    delta = B.double() @ torch.diag(d.double()) @ A.double()
    return Part({"A": A, "B": B, "d": d}, weight), lambda W: W + weight * delta


def lowrank_transposed(weight: float) -> Example:
    A, B = random(3, ROWS, seed=1), random(COLUMNS, 3, seed=2)
    delta = (B.double() @ A.double()).T
    return Part({"A": A, "B": B}, weight, {"transpose": True}), lambda W: W + weight * delta


def sparse(index: str, weight: float) -> Example:
    generator = np.random.default_rng(4)
    chosen = generator.random((ROWS, COLUMNS)) < 0.3
    flat = np.flatnonzero(chosen)
    val = random(flat.size, seed=5, dtype=torch.bfloat16)
    crow = np.concatenate([[0], np.cumsum(chosen.sum(1))])
    encodings = {
        "flat": {"idx": torch.tensor(flat, dtype=torch.int32)},
        "csr16": {
            "crow": torch.tensor(crow, dtype=torch.int32),
            "col": torch.tensor(flat % COLUMNS).to(torch.uint16),
        },
        "bitmap": {"bits": torch.tensor(np.packbits(chosen, bitorder="little"))},
    }
    delta = torch.zeros(ROWS * COLUMNS).double()
    delta[flat] = val.double()
    return (
        Part({"val": val, **encodings[index]}, weight, {"index": index}),
        lambda W: W + weight * delta.view(ROWS, COLUMNS),
    )


def mask(weight: float) -> Example:
    selected = random(ROWS, COLUMNS, seed=6) > 0
    delta = random(ROWS, COLUMNS, seed=7)
    bits = torch.tensor(np.packbits(selected.numpy(), bitorder="little"))
    return (
        Part({"bits": bits, "delta": delta}, weight, {"mode": "select"}),
        lambda W: W + weight * selected.double() * delta.double(),
    )


def dense(weight: float) -> Example:
    delta = random(ROWS, COLUMNS, seed=8, dtype=torch.float16)
    return Part({"delta": delta}, weight), lambda W: W + weight * delta.double()


def dense_transposed(weight: float) -> Example:
    delta = random(COLUMNS, ROWS, seed=8)
    return Part({"delta": delta}, weight, {"transpose": True}), lambda W: W + weight * delta.double().T


def replace(weight: float) -> Example:
    value = random(ROWS, COLUMNS, seed=9)
    return Part({"value": value}, weight), lambda W: W + weight * (value.double() - W)


def vera(weight: float) -> Example:
    A, B = random(3, COLUMNS, seed=1), random(ROWS, 3, seed=2)
    d, b = random(3, seed=3), random(ROWS, seed=4)
    delta = torch.diag(b.double()) @ B.double() @ torch.diag(d.double()) @ A.double()
    return Part({"A": A, "B": B, "d": d, "b": b}, weight), lambda W: W + weight * delta


def replace_rows(weight: float) -> Example:
    idx, value = torch.tensor([7, 0, 11]), random(3, COLUMNS, seed=9)

    def formula(W: torch.Tensor) -> torch.Tensor:
        result = W.clone()
        result[idx] += weight * (value.double() - W[idx])
        return result

    return Part({"idx": idx, "value": value}, weight), formula


def scale(weight: float) -> Example:
    row, col = random(ROWS, seed=11), random(COLUMNS, seed=12, dtype=torch.bfloat16)
    return Part({"row": row, "col": col}, 1.0), lambda W: W * row.double()[:, None] * col.double()


def scale_transposed(weight: float) -> Example:
    row = random(COLUMNS, seed=11)
    return Part({"row": row}, 1.0, {"transpose": True}), lambda W: W.mul(row.double())


def prune(weight: float) -> Example:
    kept = random(ROWS, COLUMNS, seed=6) > 0
    bits = torch.tensor(np.packbits(kept.numpy(), bitorder="little"))
    return Part({"bits": bits}, 1.0), lambda W: W * kept.double()


def dora(is_transposed: bool) -> Callable[[float], Example]:
    out, fan_in = (COLUMNS, ROWS) if is_transposed else (ROWS, COLUMNS)

    def make(weight: float) -> Example:
        A, B, mag = random(3, fan_in, seed=1), random(out, 3, seed=2), random(out, seed=3).abs()

        def formula(W: torch.Tensor) -> torch.Tensor:
            V = (W.T if is_transposed else W) + 0.5 * B.double() @ A.double()
            V = V * (mag.double() / V.norm(dim=1))[:, None]
            result: torch.Tensor = V.T if is_transposed else V
            return result

        return Part({"A": A, "B": B, "mag": mag}, 1.0, {"scaling": 0.5, "transpose": is_transposed}), formula

    return make


EXAMPLES: dict[str, tuple[str, Callable[[float], Example]]] = {
    "lowrank": ("lowrank", lowrank),
    "lowrank transposed": ("lowrank", lowrank_transposed),
    "sparse flat": ("sparse", lambda weight: sparse("flat", weight)),
    "sparse csr16": ("sparse", lambda weight: sparse("csr16", weight)),
    "sparse bitmap": ("sparse", lambda weight: sparse("bitmap", weight)),
    "mask": ("mask", mask),
    "dense": ("dense", dense),
    "dense transposed": ("dense", dense_transposed),
    "replace": ("replace", replace),
    "replace_rows": ("replace_rows", replace_rows),
    "lowrank of VeRA": ("lowrank", vera),
    "scale": ("scale", scale),
    "scale transposed": ("scale", scale_transposed),
    "prune": ("prune", prune),
    "dora": ("dora", dora(False)),
    "dora transposed": ("dora", dora(True)),
}
"""An affine term has no weight of its own: `effects` interpolates."""


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> tuple[str, Callable[[float], Example]]:
    return EXAMPLES[request.param]


def test_every_term_has_an_example() -> None:
    assert set(terms()) == {name for name, _ in EXAMPLES.values()}


@pytest.mark.parametrize("weight", [1.0, -0.7, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_term_does_what_its_formula_says(
    example: tuple[str, Callable[[float], Example]], weight: float, dtype: torch.dtype
) -> None:
    name, make = example
    part, formula = make(weight)
    W = random(ROWS, COLUMNS, seed=10, dtype=dtype)
    tile = W.clone()
    terms()[name].prepare([part], W)(tile, 0, ROWS)
    torch.testing.assert_close(tile.double(), formula(W.double()), rtol=2e-6, atol=2e-6)


def test_rows_may_be_done_a_few_at_a_time(example: tuple[str, Callable[[float], Example]]) -> None:
    name, make = example
    part, formula = make(0.5)
    W = random(ROWS, COLUMNS, seed=10)
    apply = terms()[name].prepare([part], W)
    tiles = [(W[start:stop].clone(), start, stop) for start, stop in ((0, 1), (1, 7), (7, ROWS))]
    for tile, start, stop in tiles:
        apply(tile, start, stop)
    whole = torch.cat([tile for tile, _, _ in tiles])
    torch.testing.assert_close(whole.double(), formula(W.double()), rtol=2e-6, atol=2e-6)


def test_several_terms_of_one_kind_are_a_sum(example: tuple[str, Callable[[float], Example]]) -> None:
    name, make = example
    if terms()[name].effect == "affine":
        pytest.skip("affine terms act one after another")
    (first, formula), (second, other) = make(0.5), make(0.25)
    W = random(ROWS, COLUMNS, seed=10)
    tile = W.clone()
    terms()[name].prepare([first, second], W)(tile, 0, ROWS)
    expected = formula(W.double()) + other(W.double()) - W.double()
    torch.testing.assert_close(tile.double(), expected, rtol=2e-6, atol=2e-6)


def test_a_terms_tensors_are_not_modified(example: tuple[str, Callable[[float], Example]]) -> None:
    name, make = example
    part, _ = make(0.5)
    before = {field: tensor.clone() for field, tensor in part.fields.items()}
    terms()[name].prepare([part], random(ROWS, COLUMNS))(torch.zeros(ROWS, COLUMNS), 0, ROWS)
    assert all(torch.equal(part.fields[field], tensor) for field, tensor in before.items())


def test_the_norm_is_that_of_the_delta(example: tuple[str, Callable[[float], Example]]) -> None:
    name, make = example
    part, formula = make(-0.5)
    norm = terms()[name].norm(part, (ROWS, COLUMNS))
    if norm is None:
        assert not terms()[name].is_additive
        return
    delta = formula(torch.zeros(ROWS, COLUMNS).double())
    assert norm == pytest.approx(float(delta.norm()), rel=1e-6)


def test_exact_factors_are_the_delta(example: tuple[str, Callable[[float], Example]]) -> None:
    name, make = example
    factors = terms()[name].factors
    if factors is None:
        pytest.skip(f"{name} has no low-rank form")
    part, formula = make(-0.5)
    left, right = factors(part, (ROWS, COLUMNS))
    expected = formula(torch.zeros(ROWS, COLUMNS).double())
    torch.testing.assert_close((left.double() @ right.double()), expected, rtol=2e-6, atol=2e-6)


def test_a_term_lists_the_fields_it_reads(example: tuple[str, Callable[[float], Example]]) -> None:
    name, make = example
    part, _ = make(1.0)
    assert set(part.fields) <= set(terms()[name].fields)


def test_a_replacement_with_weight_one_is_exact() -> None:
    value = random(ROWS, COLUMNS, seed=9) * 1e-30
    tile = random(ROWS, COLUMNS, seed=10)
    terms()["replace"].prepare([Part({"value": value}, 1.0)], tile.clone())(tile, 0, ROWS)
    assert torch.equal(tile, value)


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (1, 5), (5, 1)])
def test_small_and_empty_sites_take_low_rank_terms(shape: tuple[int, int]) -> None:
    A, B = random(2, shape[1], seed=1), random(shape[0], 2, seed=2)
    tile = torch.zeros(shape)
    terms()["lowrank"].prepare([Part({"A": A, "B": B}, 2.0)], tile.clone())(tile, 0, shape[0])
    torch.testing.assert_close(tile, 2 * B @ A)


def test_a_convolution_folds_as_a_matrix() -> None:
    A, B = random(2, 3, 3, 3, seed=1), random(5, 2, 1, 1, seed=2)
    tile = torch.zeros(5, 27)
    terms()["lowrank"].prepare([Part({"A": A, "B": B}, 1.0)], torch.zeros(5, 3, 3, 3))(tile, 0, 5)
    expected = torch.einsum("or,rikl->oikl", B[:, :, 0, 0], A)
    torch.testing.assert_close(tile.view(5, 3, 3, 3), expected)


def test_a_mask_that_prunes_does_not_fold() -> None:
    part, _ = mask(1.0)
    with pytest.raises(NotFoldable, match="prune"):
        terms()["mask"].prepare([Part(part.fields, 1.0, {"mode": "prune"})], random(ROWS, COLUMNS))
