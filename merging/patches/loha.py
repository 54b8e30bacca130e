"""loha: LoHa as peft saves it: the entrywise product of two low-rank matrices.

Keys: `hada_w1_a` (out, r), `hada_w1_b` (r, in), `hada_w2_a`, `hada_w2_b` alike; a convolution's inputs are in·k·k or,
with use_effective_conv2d, its kernel is in the cores `hada_t1` and `hada_t2` (r, r, k, k), and the factors are (r, out)
and (r, in). Scaling is alpha / r; both may differ by module through rank_pattern and alpha_pattern.

Source: arXiv:2108.06098 prop. 1 and 3 (FedPara); arXiv:2309.14859; peft 0.21 `tuners/loha/{config,layer,model}.py`.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import matching, positive, read_pattern, whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, peft_kind

_FIELDS = {f".hada_{name}": name.replace("_", "") for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("r", 8), f"{file}: r")
    positive(config.get("alpha", 8), f"{file}: alpha")
    for key in ("rank_pattern", "alpha_pattern"):
        read_pattern(config.get(key) or {}, f"{file}: {key}")


def _by_module(adapter: Adapter, module: Module, key: str, default: float) -> float:
    return matching(read_pattern(adapter.config.get(key) or {}, CONFIG), module.path, default)


def _rank(adapter: Adapter, module: Module) -> float:
    return _by_module(adapter, module, "rank_pattern", adapter.config.get("r", 8))


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shapes = {name: handle.shape for name, handle in module.fields.items()}
    r = _rank(adapter, module)
    has_core = "t1" in shapes or "t2" in shapes
    a, b = shapes["w1a"], shapes["w1b"]
    if shapes["w2a"] != a or shapes["w2b"] != b or len(a) != 2 or len(b) != 2:
        yield f"its two pairs of factors are {a}, {b} and {shapes['w2a']}, {shapes['w2b']}; equal ones are expected"
    elif (a[0] if has_core else a[1]) != b[0]:
        yield f"hada_w1_a is {a} and hada_w1_b {b}: their ranks differ"
    elif b[0] != r:
        yield f"its rank is {b[0]}, {CONFIG} says {r:g} (r or rank_pattern)"
    elif has_core and (shapes.get("t1") != shapes.get("t2") or len(shapes["t1"]) != 4 or shapes["t1"][:2] != (r, r)):
        yield f"hada_t1 is {shapes.get('t1')} and hada_t2 {shapes.get('t2')}; two of ({r:g}, {r:g}, k, k) are expected"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One hadamard term."""
    a, b = module.fields["w1a"], module.fields["w1b"]
    if "t1" in module.fields:
        rows, columns = a.shape[1], b.shape[1] * prod(module.fields["t1"].shape[2:])
    else:
        rows, columns = a.shape[0], b.shape[1]
    site, options = sites.matrix(module.path, rows, columns)
    scaling = _by_module(adapter, module, "alpha_pattern", float(adapter.config.get("alpha", 8))) / b.shape[0]
    yield SiteTerm(site, "hadamard", module.fields, scaling, options)


SPEC = peft_kind(
    Tuner(
        peft_type="LOHA",
        fields=_FIELDS,
        required=(("w1a",), ("w1b",), ("w2a",), ("w2b",)),
        shown=("r", "alpha", "use_effective_conv2d"),
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: module.fields["w1b"].shape[0],
        terms=_terms,
    ),
    name="loha",
    title="LoHa",
    summary="The entrywise product of two low-rank matrices on some modules",
    source="arXiv:2108.06098, as peft saves it",
    has_factors=True,
)
