"""Bottleneck adapters of the library `adapters`: what their configuration may say and their tensors must be.

Never imports torch. Source: adapters 1.3.0 `methods/modeling.py` (Adapter, ParallelAdapter, PHMLayer).
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from adapterhub.merging.adapters_folder import CONFIG, WEIGHTS, AdaptersFolder
from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import join
from adapterhub.merging.representations import ACTIVATIONS

_UNSUPPORTED: Mapping[str, tuple[Any, str]] = {
    "ln_before": (False, "a norm of its own before it"),
    "ln_after": (False, "a norm of its own after it"),
    "adapter_residual_before_ln": (False, "its residual before a norm of its own"),
    "cross_adapter": (False, "an adapter after cross-attention"),
    "residual_before_ln": (True, "a residual that is taken after the norm"),
    "original_ln_after": (True, "no norm after it"),
}
"""Settings that are run with one value alone, and what another one would mean."""


def check_bottlenecks(found: AdaptersFolder) -> None:
    """Raises InvalidPatch for settings that are not run here, and for tensors that do not fit them."""
    config, file = found.config, join(found.path, CONFIG)
    for key, (expected, means) in _UNSUPPORTED.items():
        if config.get(key, expected) != expected:
            raise InvalidPatch(f"{file}: {key} is {config[key]!r}: {means}, which is not run here; {expected} is")
    activation = config.get("non_linearity")
    if str(activation).lower() not in ACTIVATIONS:
        raise InvalidPatch(f"{file}: non_linearity is {str(activation)[:80]!r}; {', '.join(ACTIVATIONS)} are known")
    scaling = config.get("scaling", 1.0)
    is_number = not isinstance(scaling, bool) and isinstance(scaling, int | float) and isfinite(scaling)
    if not is_number and scaling not in ("learned", "channel"):
        raise InvalidPatch(f"{file}: scaling is {scaling!r}; a number, 'learned' or 'channel' is expected")
    if config.get("inv_adapter") not in (None, "nice"):
        raise InvalidPatch(f"{file}: inv_adapter is {config['inv_adapter']!r}; 'nice' alone is run here")
    if not found.modules and not found.invertible:
        raise InvalidPatch(f"{join(found.path, WEIGHTS)}: holds no bottleneck named {found.whole.get('name')!r}")
    width = found.whole.get("hidden_size")
    if type(width) is not int or width < 1:
        raise InvalidPatch(f"{file}: hidden_size is {width!r}; a whole number is expected")
    for path, fields in found.modules.items():
        _check_module(found, f"{join(found.path, WEIGHTS)}: {path}", fields, width)
    _check_invertible(found)


def _check_module(found: AdaptersFolder, where: str, fields: Mapping[str, TensorHandle], width: int) -> None:
    config = found.config
    if config.get("phm_layer"):
        wanted = _phm_shapes(found, where, fields, width)
    else:
        inner = fields["adapter_down.0.weight"].shape[0] if "adapter_down.0.weight" in fields else 0
        wanted = {
            "adapter_down.0.weight": (inner, width),
            "adapter_down.0.bias": (inner,),
            "adapter_up.weight": (width, inner),
            "adapter_up.bias": (width,),
        }
    if config.get("use_gating"):
        wanted |= {"gate.weight": (1, width), "gate.bias": (1,)}
    if isinstance(config.get("scaling"), str):
        wanted["scaling"] = (1,) if config["scaling"] == "learned" else (width,)
    different = sorted(fields.keys() ^ wanted.keys())
    if different:
        raise InvalidPatch(f"{where}: {different[0]} is {'missing' if different[0] in wanted else 'unexpected'}")
    for name, shape in wanted.items():
        if fields[name].shape != shape or 0 in shape:
            raise InvalidPatch(f"{where}: {name} is {fields[name].shape}; {shape} is expected")


def _phm_shapes(
    found: AdaptersFolder, where: str, fields: Mapping[str, TensorHandle], width: int
) -> dict[str, tuple[int, ...]]:
    """Of parametrised hypercomplex layers: Σ_i kron(rule_i, W_i), W_i perhaps a product of two."""
    config = found.config
    n, rank, factor = config.get("phm_dim"), config.get("phm_rank"), config.get("reduction_factor")
    if type(n) is not int or n < 1 or type(rank) is not int or rank < 1 or not isinstance(factor, int | float):
        raise InvalidPatch(f"{where}: phm_dim, phm_rank and reduction_factor must be numbers above 0")
    if config.get("shared_W_phm"):
        raise InvalidPatch(f"{where}: shared_W_phm is set: one W for all layers, which is not run here")
    inner = max(1, int(width // factor)) if factor else width
    wanted: dict[str, tuple[int, ...]] = {}
    for name, (i, o) in {"adapter_down.0": (width, inner), "adapter_up": (inner, width)}.items():
        if config.get("factorized_phm_W"):
            wanted |= {f"{name}.W_left": (n, i // n, rank), f"{name}.W_right": (n, rank, o // n)}
        else:
            wanted[f"{name}.W"] = (n, i // n, o // n)
        if config.get("phm_bias"):
            wanted[f"{name}.b"] = (o,)
        if not config.get("shared_phm_rule"):
            wanted |= {f"{name}.{key}": shape for key, shape in _rule_shapes(config, n).items()}
    if config.get("shared_phm_rule"):
        for key, shape in _rule_shapes(config, n).items():
            if key not in found.shared or found.shared[key].shape != shape:
                raise InvalidPatch(f"{where}: the shared {key} is missing, or not {shape}")
    return wanted


def _rule_shapes(config: Mapping[str, Any], n: int) -> dict[str, tuple[int, ...]]:
    if config.get("factorized_phm_rule"):
        return {"phm_rule_left": (n, n, 1), "phm_rule_right": (n, 1, n)}
    return {"phm_rule": (n, n, n)}


def _check_invertible(found: AdaptersFolder) -> None:
    wanted = {f"{part}.{layer}.{leaf}" for part in "FG" for layer in (0, 2) for leaf in ("weight", "bias")}
    if bool(found.config.get("inv_adapter")) != bool(found.invertible) or set(found.invertible) - wanted:
        raise InvalidPatch(f"{join(found.path, WEIGHTS)}: inv_adapter and the invertible tensors contradict each other")
    if found.invertible and set(found.invertible) != wanted:
        missing = min(wanted - set(found.invertible))
        raise InvalidPatch(f"{join(found.path, WEIGHTS)}: the invertible adapter has no {missing}")
