"""oft: OFT as peft saves it: the inputs of a module turned by a block-diagonal rotation.

Keys: `oft_R.weight` (n, b·(b-1)/2), `oft_embedding_R.weight` for embeddings: the entries above the diagonal of n skew
matrices Q, with block_share of one that all blocks share. R is the Cayley transform (I - Q)·(I + Q)⁻¹, by default its
Neumann series cut after num_cayley_neumann_terms, which is not quite orthogonal. W becomes W·Rᵀ, an embedding W·R.
With coft each Q is drawn back to a ball of radius eps / sqrt(n) whenever it is used, so also here.

Source: arXiv:2306.07280; arXiv:2506.19847 (the series); peft 0.21 `tuners/oft/{config,layer}.py`, get_weight.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import positive, whole
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, floats, peft_kind

_TERMS = 5
"""num_cayley_neumann_terms where the configuration is silent."""


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("num_cayley_neumann_terms", _TERMS), f"{file}: num_cayley_neumann_terms", most=1000)
    if config.get("coft"):
        positive(config.get("eps", 6e-5), f"{file}: eps")
    for key in ("use_cayley_neumann", "block_share", "coft"):
        if not isinstance(config.get(key, False), bool):
            raise InvalidPatch(f"{file}: {key} is {str(config[key])[:80]!r}; true or false is expected")


def _block_size(entries: int) -> int | None:
    """The size of a skew matrix with so many entries above its diagonal; None where there is no such size."""
    b = (1 + math.isqrt(1 + 8 * entries)) // 2
    return b if b * (b - 1) // 2 == entries else None


def _skew_vectors(module: Module) -> str:
    return "embedding_R" if "embedding_R" in module.fields else "R"


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape = module.fields[_skew_vectors(module)].shape
    if len(shape) != 2 or _block_size(shape[1]) is None:
        yield f"oft_R is {shape}; (blocks, b·(b-1)/2) is expected"
    elif adapter.config.get("block_share") and shape[0] != 1:
        yield f"oft_R is {shape}, and block_share says that there is one block"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One rotate term."""
    name = _skew_vectors(module)
    vectors = module.fields[name]
    n, b = vectors.shape[0], _block_size(vectors.shape[1]) or 1
    stored = sites.shape(module.path)
    columns = math.prod(stored[1:]) if stored and adapter.config.get("block_share") else n * b
    if columns % b:
        raise InvalidPatch(f"{adapter.file}: {module.path}: blocks of {b} do not divide {columns} inputs")
    if name == "embedding_R":
        site, options = sites.weight(module.path, (columns, stored[0] if stored else columns), is_embedding=True)
    else:
        site, options = sites.matrix(module.path, None, columns)

    def make() -> Array:
        R = _rotations(as_floats(vectors), b, adapter.config)
        return R.transpose(0, 2, 1) if name == "embedding_R" else R

    yield SiteTerm(site, "rotate", {"R": floats(vectors.name, (n, b, b), make)}, options=options)


def _rotations(vectors: Array, b: int, config: Mapping[str, Any]) -> Array:
    """R (n, b, b) in float64 from the entries above the diagonals of Q, row by row."""
    Q = np.zeros((len(vectors), b, b))
    Q[:, *np.triu_indices(b, 1)] = vectors
    Q -= Q.transpose(0, 2, 1)
    if config.get("coft"):
        norms = np.sqrt(np.square(Q).sum((1, 2), keepdims=True))
        radius = float(config.get("eps", 6e-5)) / math.sqrt(len(Q))
        Q = np.where(norms <= radius, Q, Q * (radius / np.maximum(norms, radius)))
    identity = np.broadcast_to(np.eye(b), Q.shape)
    if not config.get("use_cayley_neumann", True):
        # (I - Q)·(I + Q)⁻¹; the two commute.
        solved: Array = np.linalg.solve(identity + Q, identity - Q)
        return solved
    return _neumann(Q, identity, config.get("num_cayley_neumann_terms", _TERMS))


def _neumann(Q: Array, identity: Array, terms: int) -> Array:
    """I + 2·(Q + Q² + … + Qᵏ⁻²) + Qᵏ⁻¹ for k terms, as peft sums them: the last counts once, and 2·Q alone for 2."""
    R = identity.copy()
    if terms > 1:
        R += 2.0 * Q
    if terms > 2:
        power = Q @ Q
        R += 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ Q
            R += 2.0 * power
        R += power @ Q
    return R


SPEC = peft_kind(
    Tuner(
        peft_type="OFT",
        fields={".oft_R.weight": "R", ".oft_embedding_R.weight": "embedding_R"},
        required=(("R", "embedding_R"),),
        shown=("r", "oft_block_size", "block_share", "coft", "use_cayley_neumann", "num_cayley_neumann_terms"),
        effect="affine",
        check=_check,
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="oft",
    title="OFT",
    summary="The inputs of some modules turned by blocks",
    source="arXiv:2306.07280, as peft saves it",
)
