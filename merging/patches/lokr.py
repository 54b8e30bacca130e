"""lokr: LoKr as peft saves it: the Kronecker product of two small matrices, each whole or in factors.

Keys: `lokr_w1` (a, b) or `lokr_w1_a` (a, r) and `lokr_w1_b` (r, b); `lokr_w2` (c, d) or `lokr_w2_a` and `lokr_w2_b`, a
convolution's kernel being in w2, in w2_b's columns or in the core `lokr_t2` (r, r, k, k). The weight is (a·c, b·d).
Scaling is alpha / r, even where nothing has the rank r; both may differ by module.

Source: arXiv:2309.14859; peft 0.21 `tuners/lokr/{config,layer}.py`, get_delta_weight.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import matching, positive, read_pattern, whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, peft_kind

_FIELDS = {f".lokr_{name}": name.replace("_", "") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("r", 8), f"{file}: r")
    positive(config.get("alpha", 8), f"{file}: alpha")
    for key in ("rank_pattern", "alpha_pattern"):
        read_pattern(config.get(key) or {}, f"{file}: {key}")


def _by_module(adapter: Adapter, module: Module, key: str, default: float) -> float:
    return matching(read_pattern(adapter.config.get(key) or {}, CONFIG), module.path, default)


def _rank(adapter: Adapter, module: Module) -> float:
    return _by_module(adapter, module, "rank_pattern", adapter.config.get("r", 8))


def _side(module: Module, name: str) -> tuple[int, int]:
    """Rows and columns of one side, the kernel among the columns. Raises ValueError, saying what does not fit."""
    fields = {field: handle.shape for field, handle in module.fields.items() if field.startswith(name)}
    if name in fields:
        shape = fields[name]
        if len(fields) > 1 or len(shape) < 2 or (name == "w1" and len(shape) != 2):
            raise ValueError(f"lokr_{name} is {shape}, and its factors are {sorted(fields)[1:] or 'absent'}")
        return shape[0], prod(shape[1:])
    a, b = fields.get(name + "a"), fields.get(name + "b")
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        raise ValueError(f"lokr_{name}_a is {a} and lokr_{name}_b {b}; two matrices are expected")
    core = module.fields.get("t2") if name == "w2" else None
    if core is None:
        if a[1] != b[0]:
            raise ValueError(f"lokr_{name}_a is {a} and lokr_{name}_b {b}: their ranks differ")
        return a[0], b[1]
    if len(core.shape) != 4 or core.shape[:2] != (a[0], b[0]):
        raise ValueError(f"lokr_t2 is {core.shape}; {(a[0], b[0])} and two of a kernel are expected")
    return a[1], b[1] * prod(core.shape[2:])


def _ranks(adapter: Adapter, module: Module) -> int | None:
    """The rank of what is in factors."""
    factors = [handle.shape[0] for name, handle in module.fields.items() if name in ("w1b", "w2b")]
    return max(factors, default=None)


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    try:
        _side(module, "w1")
        _side(module, "w2")
    except ValueError as error:
        yield str(error)
        return
    found, r = _ranks(adapter, module), _rank(adapter, module)
    if found not in (None, r):
        yield f"its rank is {found}, {CONFIG} says {r:g} (r or rank_pattern)"
    elif "t2" in module.fields and "w2a" not in module.fields:
        yield "has lokr_t2 and no lokr_w2_a"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One kron term."""
    (a, b), (c, d) = _side(module, "w1"), _side(module, "w2")
    site, options = sites.matrix(module.path, a * c, b * d)
    scaling = _by_module(adapter, module, "alpha_pattern", float(adapter.config.get("alpha", 8)))
    scaling /= _rank(adapter, module)
    is_padded = "w2" in module.fields and len(module.fields["w2"].shape) == 3
    yield SiteTerm(site, "kron", module.fields, scaling, options | ({"is_padded": True} if is_padded else {}))


SPEC = peft_kind(
    Tuner(
        peft_type="LOKR",
        fields=_FIELDS,
        required=(("w1", "w1a"), ("w2", "w2a")),
        shown=("r", "alpha", "decompose_both", "decompose_factor", "use_effective_conv2d"),
        check=_check,
        contradictions=_contradictions,
        ranks=_ranks,
        terms=_terms,
    ),
    name="lokr",
    title="LoKr",
    summary="The Kronecker product of two small matrices on some modules",
    source="arXiv:2309.14859, as peft saves it",
    has_factors=True,
)
