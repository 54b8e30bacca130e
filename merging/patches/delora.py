"""delora: DeLoRA as peft saves it: low-rank factors of unit length, under one strength a module.

Keys: `delora_A` (r, in), `delora_B` (out, r), `delora_lambda` (1,) and `delora_w_norm` (in,), the norms of the base's
columns. The delta is B·diag(lambda / (r·‖A_k‖·‖B_k‖))·A with its columns times w_norm: a LoRA of rank r, exactly.
Norms below 1e-4 count as that. rank_pattern may change r by module.

Source: arXiv:2503.18225; peft 0.21 `tuners/delora/{config,layer,model}.py`, _compute_delta.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.merging.encodings import Array, as_floats
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import matching, read_pattern, whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, floats, peft_kind

_SHORTEST = 1e-4
_FIELDS = {f".delora_{name}": name for name in ("A", "B", "lambda", "w_norm")}


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("r", 8), f"{file}: r")
    read_pattern(config.get("rank_pattern") or {}, f"{file}: rank_pattern")


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    A, B, strength, norms = (module.fields[name].shape for name in ("A", "B", "lambda", "w_norm"))
    r = matching(
        read_pattern(adapter.config.get("rank_pattern") or {}, CONFIG), module.path, adapter.config.get("r", 8)
    )
    if len(A) != 2 or len(B) != 2 or A[0] != B[1] or strength != (1,) or norms != A[1:]:
        found = f"delora_A is {A}, delora_B {B}, delora_lambda {strength} and delora_w_norm {norms}"
        yield f"{found}; (r, in), (out, r), (1,) and (in,) are expected"
    elif A[0] != r:
        yield f"its rank is {A[0]}, {CONFIG} says {r:g} (r or rank_pattern)"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank term; strength and norms go into A when it is read."""
    A, B = module.fields["A"], module.fields["B"]
    site, options = sites.matrix(module.path, B.shape[0], A.shape[1])

    def scaled() -> Array:
        a, b, strength, norms = (as_floats(module.fields[name]) for name in ("A", "B", "lambda", "w_norm"))
        lengths = [np.maximum(np.linalg.norm(one, axis=axis), _SHORTEST) for one, axis in ((a, 1), (b, 0))]
        result: Array = a * (strength / (len(a) * lengths[0] * lengths[1]))[:, None] * norms
        return result

    yield SiteTerm(site, "lowrank", {"A": floats(A.name, A.shape, scaled), "B": B}, options=options)


SPEC = peft_kind(
    Tuner(
        peft_type="DELORA",
        fields=_FIELDS,
        required=(("A",), ("B",), ("lambda",), ("w_norm",)),
        shown=("r", "delora_lambda"),
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: module.fields["A"].shape[0],
        terms=_terms,
    ),
    name="delora",
    title="DeLoRA",
    summary="Low-rank factors of unit length under one strength a module",
    source="arXiv:2503.18225, as peft saves it",
    has_factors=True,
)
