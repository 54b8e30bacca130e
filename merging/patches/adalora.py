"""adalora: AdaLoRA as peft saves it: low-rank factors with singular values, each module with the rank it kept.

Keys: `lora_A` (r, in), `lora_E` (r, 1), `lora_B` (out, r), a convolution's A (r, in·k·k). Scaling is lora_alpha over
init_r: the count of ranks that peft divides by is not stored, and stays the first one however many were dropped.
rank_pattern says which ranks of a module stayed; a module that kept none has empty tensors and no delta.

Source: arXiv:2303.10512; peft 0.21 `tuners/adalora/{config,layer,model}.py`, get_delta_weight, update_layer,
resize_modules_by_rank_pattern.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import whole
from adapterhub.merging.peft_adapter import CONFIG, Adapter, Module, Sites, Tuner, peft_kind, reshaped

_FIELDS = {".lora_A": "A", ".lora_B": "B", ".lora_E": "E"}


def _check(config: Mapping[str, Any], file: str) -> None:
    whole(config.get("init_r", 12), f"{file}: init_r")
    alpha = config.get("lora_alpha", 8)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise InvalidPatch(f"{file}: lora_alpha is {str(alpha)[:80]!r}; a number is expected")
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict) or not all(
        isinstance(kept, list) and all(isinstance(one, bool) for one in kept) for kept in pattern.values()
    ):
        raise InvalidPatch(f"{file}: rank_pattern is no object of lists of true and false")


def _rank(adapter: Adapter, module: Module) -> int:
    """The ranks that the module kept; keys of rank_pattern end with the tensor's name, and maybe the adapter's."""
    for key, kept in (adapter.config.get("rank_pattern") or {}).items():
        if key.partition(".lora_E")[0] == module.path:
            return sum(kept)
    return int(adapter.config.get("init_r", 12))


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    A, B, E = (module.fields[name].shape for name in ("A", "B", "E"))
    r = _rank(adapter, module)
    if len(A) != 2 or len(B) != 2 or B[1] != A[0] or E[:1] != A[:1] or E[1:] != (1,):
        yield f"lora_A is {A}, lora_E {E} and lora_B {B}; (r, in), (r, 1) and (out, r) are expected"
    elif r != A[0]:
        yield f"its rank is {A[0]}, {CONFIG} says {r} (init_r or rank_pattern)"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One lowrank term with the singular values as d; none for a module without any rank."""
    A, B = module.fields["A"], module.fields["B"]
    r, out = A.shape[0], B.shape[0]
    site, options = sites.matrix(module.path, out, A.shape[1], can_transpose=True)
    if options["layer"] == "conv":
        kernel = (sites.shape(module.path) or ())[1:]
        A, B = reshaped(A, (r, *kernel)), reshaped(B, (out, r, *(1 for _ in kernel[1:])))
    alpha = float(adapter.config.get("lora_alpha", 8))
    scaling = (alpha if alpha > 0 else float(r)) / (adapter.config.get("init_r", 12) + 1e-5)
    if r:
        fields = {"A": A, "B": B, "d": reshaped(module.fields["E"], (r,))}
        yield SiteTerm(site, "lowrank", fields, scaling, options)


SPEC = peft_kind(
    Tuner(
        peft_type="ADALORA",
        fields=_FIELDS,
        required=(("A",), ("B",), ("E",)),
        shown=("init_r", "target_r", "lora_alpha"),
        may_be_empty=frozenset({"A", "B", "E"}),
        check=_check,
        contradictions=_contradictions,
        ranks=lambda adapter, module: module.fields["A"].shape[0],
        terms=_terms,
    ),
    name="adalora",
    title="AdaLoRA",
    summary="Low-rank factors with singular values, the rank chosen module by module",
    source="arXiv:2303.10512, as peft saves it",
    has_factors=True,
)
