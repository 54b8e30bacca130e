"""Laws that every registered term keeps, and its values against a float64 formula."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adapterhub.merging.errors import NotFoldable
from adapterhub.merging.ops.philox import Stream
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


def lowrank_coded(bits: int, is_transposed: bool, weight: float) -> Example:
    """Codes laid out bit by bit; A's scale is of whole rows, B's of groups of 2."""
    generator = np.random.default_rng(16)
    out, fan_in = (COLUMNS, ROWS) if is_transposed else (ROWS, COLUMNS)
    fields: dict[str, torch.Tensor] = {}
    factors: list[torch.Tensor] = []
    for name, size, groups in (("A", fan_in, 1), ("B", out, out // 2)):
        codes = generator.integers(0, 2**bits, (3, size))
        scale = random(3, groups, seed=len(factors)).abs()
        digits = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
        fields[name] = torch.tensor(np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little"))
        fields[f"{name}_scale"] = scale
        spread = torch.kron(scale.double(), torch.ones(1, size // groups).double())
        factors.append(torch.tensor(codes - 2 ** (bits - 1)).double() * spread)
    A, B = factors
    delta = (B.T @ A).T if is_transposed else B.T @ A
    return Part(fields, weight, {"bits": bits, "transpose": is_transposed}), lambda W: W + weight * delta


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
        "pairs": {"idx": torch.tensor(np.stack([flat // COLUMNS, flat % COLUMNS]), dtype=torch.int32)},
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


def hadamard(weight: float) -> Example:
    w1a, w1b = random(ROWS, 3, seed=1), random(3, COLUMNS, seed=2, dtype=torch.bfloat16)
    w2a, w2b = random(ROWS, 3, seed=3), random(3, COLUMNS, seed=4)
    delta = (w1a.double() @ w1b.double()) * (w2a.double() @ w2b.double())
    return Part({"w1a": w1a, "w1b": w1b, "w2a": w2a, "w2b": w2b}, weight), lambda W: W + weight * delta


def hadamard_of_convolutions(weight: float) -> Example:
    """A convolution (12, 5, 2, 1), each matrix with a core."""
    names = {"w1a": (3, ROWS), "w1b": (3, 5), "t1": (3, 3, 2, 1), "w2a": (3, ROWS), "w2b": (3, 5), "t2": (3, 3, 2, 1)}
    fields = {name: random(*shape, seed=index) for index, (name, shape) in enumerate(names.items())}
    wide = {name: tensor.double() for name, tensor in fields.items()}
    first = torch.einsum("ijkl,ip,jq->pqkl", wide["t1"], wide["w1a"], wide["w1b"])
    second = torch.einsum("ijkl,ip,jq->pqkl", wide["t2"], wide["w2a"], wide["w2b"])
    return Part(fields, weight), lambda W: W + weight * (first * second).reshape(ROWS, COLUMNS)


def kron(weight: float) -> Example:
    w1, w2a, w2b = random(3, 2, seed=1), random(4, 2, seed=2), random(2, 5, seed=3)
    delta = torch.kron(w1.double(), w2a.double() @ w2b.double())
    return Part({"w1": w1, "w2a": w2a, "w2b": w2b}, weight), lambda W: W + weight * delta


def kron_of_whole_sides(weight: float) -> Example:
    w1a, w1b, w2 = random(6, 1, seed=1), random(1, 5, seed=2), random(2, 2, seed=3, dtype=torch.bfloat16)
    delta = torch.kron(w1a.double() @ w1b.double(), w2.double())
    return Part({"w1a": w1a, "w1b": w1b, "w2": w2}, weight), lambda W: W + weight * delta


def kron_of_a_convolution(weight: float) -> Example:
    """A convolution (12, 5, 2, 1): w1 (3, 1), w2 (4, 5, 2, 1) from its core."""
    w1, w2a, w2b, t2 = random(3, 1, seed=1), random(3, 4, seed=2), random(3, 5, seed=3), random(3, 3, 2, 1, seed=4)
    w2 = torch.einsum("ijkl,ip,jq->pqkl", t2.double(), w2a.double(), w2b.double())
    delta = torch.kron(w1.double()[:, :, None, None], w2).reshape(ROWS, COLUMNS)
    return Part({"w1": w1, "w2a": w2a, "w2b": w2b, "t2": t2}, weight), lambda W: W + weight * delta


def kron_padded(weight: float) -> Example:
    w1, w2 = random(3, 1, seed=1), random(4, 5, 2, seed=2)
    delta = torch.kron(w1.double(), w2.double()).reshape(ROWS, COLUMNS)
    return Part({"w1": w1, "w2": w2}, weight, {"is_padded": True}), lambda W: W + weight * delta


def circulant(weight: float) -> Example:
    """Blocks of 2 in one direction would hide which way they shift, so the columns are one block of 10, rows padded."""
    kernel = torch.zeros(2, 1, 10)
    kernel[0] = random(1, 10, seed=1)
    delta = torch.zeros(20, COLUMNS).double()
    for row in range(10):
        for column in range(COLUMNS):
            delta[row, column] = kernel[0, 0, (column - row) % 10]
    return Part({"kernel": kernel}, weight), lambda W: W + weight * delta[:ROWS]


def circulant_blocks(weight: float) -> Example:
    kernel = random(6, 5, 2, seed=1, dtype=torch.bfloat16)
    delta = torch.zeros(ROWS, COLUMNS).double()
    for row in range(ROWS):
        for column in range(COLUMNS):
            delta[row, column] = kernel[row // 2, column // 2, (column - row) % 2]
    return Part({"kernel": kernel}, weight), lambda W: W + weight * delta


def rotate(blocks: int) -> Callable[[float], Example]:
    def make(weight: float) -> Example:
        R = random(blocks, 5, 5, seed=13)
        whole = torch.zeros(COLUMNS, COLUMNS).double()
        for index in range(2):
            whole[5 * index : 5 * index + 5, 5 * index : 5 * index + 5] = R[index % blocks]
        return Part({"R": R}, 1.0), lambda W: (whole @ W.T).T

    return make


def reflect(weight: float) -> Example:
    u = random(COLUMNS, 3, seed=14)

    def formula(W: torch.Tensor) -> torch.Tensor:
        for column in u.double().T:
            W = W @ (torch.eye(COLUMNS).double() - 2 * torch.outer(column, column) / column.dot(column))
        return W

    return Part({"u": u}, 1.0), formula


def block_affine(weight: float) -> Example:
    B = random(6, 2, 2, seed=15)

    def formula(W: torch.Tensor) -> torch.Tensor:
        result = W.clone()
        for m in range(6):
            for n in range(5):
                V = W[2 * m : 2 * m + 2, 2 * n : 2 * n + 2]
                result[2 * m : 2 * m + 2, 2 * n : 2 * n + 2] = V + V @ B[m].double() + B[m].double()
        return result

    return Part({"B": B}, 1.0), formula


def signs(scales: tuple[int, ...], has_zero: bool, weight: float) -> Example:
    """Two levels; the formula expands the groups with a Kronecker product."""
    plus = random(2, ROWS, COLUMNS, seed=1) > 0
    zero = random(2, ROWS, COLUMNS, seed=2) > 1
    scale = random(2, *scales, seed=3).abs()
    pack = [torch.tensor(np.packbits(one.reshape(2, -1).numpy(), axis=1, bitorder="little")) for one in (plus, zero)]
    fields = {"sign": pack[0], "scale": scale} | ({"zero": pack[1]} if has_zero else {})
    spread = torch.ones(ROWS // scales[0], COLUMNS // scales[1]).double()
    delta = torch.zeros(ROWS, COLUMNS).double()
    for level in range(2):
        one = torch.kron(scale[level].double(), spread) * (2.0 * plus[level].double() - 1.0)
        delta += one * (~zero[level]).double() if has_zero else one
    return Part(fields, weight), lambda W: W + weight * delta


def hadamard_matrix(size: int) -> torch.Tensor:
    """Sylvester's construction."""
    H = torch.ones(1, 1).double()
    while len(H) < size:
        H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), H)
    return H


def seeded(projection: str, dist: str, weight: float) -> Example:
    """P as a matrix, row by row as the papers write it."""
    theta, d, p = random(5, seed=1), 5, 8
    stream = Stream.of(7, "layers.0.weight")
    draw = stream.uniform if dist == "uniform" else stream.rademacher
    if projection == "dense":
        P = torch.stack([torch.tensor(draw(0, ROWS * COLUMNS, column)) for column in range(d)], 1)
    else:
        H, blocks = hadamard_matrix(p), []
        for block in range(ROWS * COLUMNS // p):
            B = torch.diag(torch.tensor(stream.rademacher(0, p, 3 * block)))
            permuted = torch.eye(p).double()[torch.tensor(stream.permutation(p, 3 * block + 1))]
            G = torch.diag(torch.tensor(draw(0, p, 3 * block + 2)))
            blocks.append((H @ G @ permuted @ H @ B / p)[:, :d])
        P = torch.cat(blocks)
    delta = (P @ theta.double()).view(ROWS, COLUMNS)
    options = {"seed": 7, "key": "layers.0.weight", "projection": projection, "dist": dist}
    return Part({"theta": theta}, weight, options), lambda W: W + weight * delta


def trajectory(rng: str, weight: float) -> Example:
    """Three steps with weight decay, the directions drawn as a trainer draws them."""
    seeds, g, lr = torch.tensor([3, 999_999_937, 3]), random(3, seed=4), torch.tensor([1e-2, 2e-2, 5e-3])
    before = torch.tensor([7, 33])
    options = {"rng": rng, "key": "w", "decay": 0.1, "dist": "rademacher" if rng.startswith("philox") else "normal"}

    def direction(seed: int) -> torch.Tensor:
        if rng == "torch-cpu":
            torch.manual_seed(seed)
            return [torch.normal(0.0, 1.0, size) for size in ((7,), (3, 11), (ROWS, COLUMNS))][-1].double()
        return torch.tensor(Stream.of(seed, "w").rademacher(0, ROWS * COLUMNS)).view(ROWS, COLUMNS)

    def formula(W: torch.Tensor) -> torch.Tensor:
        value = W.clone()
        for step in range(3):
            z = direction(int(seeds[step]))
            value = value - lr[step].double() * (g[step].double() * z + 0.1 * value)
        return W + weight * (value - W)

    return Part({"seed": seeds, "g": g, "lr": lr, "before": before}, weight, options), formula


EXAMPLES: dict[str, tuple[str, Callable[[float], Example]]] = {
    "lowrank": ("lowrank", lowrank),
    "lowrank transposed": ("lowrank", lowrank_transposed),
    "lowrank coded in 3 bits": ("lowrank_coded", lambda weight: lowrank_coded(3, False, weight)),
    "lowrank coded in 8 bits, transposed": ("lowrank_coded", lambda weight: lowrank_coded(8, True, weight)),
    "sparse flat": ("sparse", lambda weight: sparse("flat", weight)),
    "sparse csr16": ("sparse", lambda weight: sparse("csr16", weight)),
    "sparse bitmap": ("sparse", lambda weight: sparse("bitmap", weight)),
    "sparse pairs": ("sparse", lambda weight: sparse("pairs", weight)),
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
    "signs of a tensor": ("signs", lambda weight: signs((1, 1), False, weight)),
    "signs of rows": ("signs", lambda weight: signs((ROWS, 1), False, weight)),
    "signs of groups": ("signs", lambda weight: signs((ROWS, 5), True, weight)),
    "seeded by fastfood": ("seeded", lambda weight: seeded("fastfood", "rademacher", weight)),
    "seeded by fastfood, uniform": ("seeded", lambda weight: seeded("fastfood", "uniform", weight)),
    "seeded densely": ("seeded", lambda weight: seeded("dense", "rademacher", weight)),
    "trajectory": ("trajectory", lambda weight: trajectory("philox4x32-10", weight)),
    "trajectory of torch": ("trajectory", lambda weight: trajectory("torch-cpu", weight)),
    "hadamard": ("hadamard", hadamard),
    "hadamard of convolutions": ("hadamard", hadamard_of_convolutions),
    "kron": ("kron", kron),
    "kron of whole sides": ("kron", kron_of_whole_sides),
    "kron of a convolution": ("kron", kron_of_a_convolution),
    "kron padded": ("kron", kron_padded),
    "circulant": ("circulant", circulant),
    "circulant blocks": ("circulant", circulant_blocks),
    "rotate": ("rotate", rotate(2)),
    "rotate by one block": ("rotate", rotate(1)),
    "reflect": ("reflect", reflect),
    "block_affine": ("block_affine", block_affine),
}
"""An affine term has no weight of its own: `effects` interpolates."""


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> tuple[str, Callable[[float], Example]]:
    return EXAMPLES[request.param]


def test_every_term_has_an_example() -> None:
    exact = {name for name, spec in terms().items() if spec.is_exact}  # test_exact_terms has those
    assert set(terms()) == {name for name, _ in EXAMPLES.values()} | exact


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
