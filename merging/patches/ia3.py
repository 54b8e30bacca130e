"""ia3: (IA)³ as peft saves it: a factor for each output of a module, or for each input of a feed-forward module.

Keys: `ia3_l`, (out, 1), in feed-forward modules (1, in); a convolution's are (1, out, 1, 1) and (1, in, 1, 1), and only
feedforward_modules tells them apart. Factors on outputs go on the module's bias too.

Source: arXiv:2205.05638 sec. 3.3; peft 0.21 `tuners/ia3/{config,layer,model}.py`, merge.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from adapterhub.merging.patch import SiteTerm
from adapterhub.merging.patterns import check_modules, names_module
from adapterhub.merging.peft_adapter import Adapter, Module, Sites, Tuner, peft_kind, repeated, reshaped


def _check(config: Mapping[str, Any], file: str) -> None:
    check_modules(config.get("feedforward_modules"), f"{file}: feedforward_modules")


def _is_feed_forward(adapter: Adapter, module: Module) -> bool:
    shape = module.fields["l"].shape
    if len(shape) == 2 and shape != (1, 1):
        return shape[0] == 1
    return names_module(adapter.config.get("feedforward_modules"), module.path)


def _contradictions(adapter: Adapter, module: Module) -> Iterator[str]:
    shape = module.fields["l"].shape
    if len(shape) < 2 or sum(size != 1 for size in shape) > 1 or set(shape[2:]) - {1}:
        yield f"ia3_l is {shape}; (out, 1), or (1, in) of a feed-forward module, is expected"


def _terms(adapter: Adapter, module: Module, sites: Sites) -> Iterator[SiteTerm]:
    """One scale term on the weight, and for factors on outputs one on the bias, where there is one."""
    factors = reshaped(module.fields["l"], (module.fields["l"].numel,))
    is_feed_forward = _is_feed_forward(adapter, module)
    shape = sites.shape(module.path)
    if shape is not None and len(shape) > 2:
        stated = (shape[0], factors.numel) if is_feed_forward else (factors.numel, shape[1])
        site, options = sites.weight(module.path, (*stated, *shape[2:]))
        fields = {"col": repeated(factors, prod(shape[2:]))} if is_feed_forward else {"row": factors}
    else:
        other = sites.in_features(module.path, factors.numel) or factors.numel
        sides = (other, factors.numel) if is_feed_forward else (factors.numel, other)
        site, options = sites.weight(module.path, sides)
        fields = {"col" if is_feed_forward else "row": factors}
    yield SiteTerm(site, "scale", fields, options=options)
    if not is_feed_forward and sites.base is not None and sites.find(f"{module.path}.bias") is not None:
        yield SiteTerm(sites.bias(module.path, factors.shape), "scale", {"row": factors})


SPEC = peft_kind(
    Tuner(
        peft_type="IA3",
        fields={".ia3_l": "l"},
        required=(("l",),),
        shown=("feedforward_modules",),
        effect="affine",
        check=_check,
        contradictions=_contradictions,
        terms=_terms,
    ),
    name="ia3",
    title="(IA)³",
    summary="Factors on the outputs or inputs of some modules",
    source="arXiv:2205.05638, as peft saves it",
)
