"""adapters: bottlenecks of the library `adapters` on a live model, with its invertible adapter and its head.

With y what attention or feed-forward gives and r the residual beside it, y becomes y + s · up(f(down(x))); x is y, or r
where the bottleneck is parallel, or y + r, through the block's own norm if it comes after, where original_ln_before
says so. A compacter's matrices are sums of Kronecker products. The invertible adapter changes the embedded tokens. The
weight scales s. Source: adapters 1.3.0 `methods/modeling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.adapters_folder import AdaptersFolder, open_adapters
from adapterhub.merging.bottlenecks import check_bottlenecks
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import UnknownSite
from adapterhub.merging.live import (
    check_parameters,
    check_shape,
    hidden_size,
    hook_output,
    model_name,
    module_at,
    put_parameters,
    tensor,
)
from adapterhub.merging.live_modules import activation_of
from adapterhub.merging.registry import RuntimeSpec

if TYPE_CHECKING:
    import torch

_BRANCHES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "attention_adapters": (("self_attn", "input_layernorm"), ("attn", "ln_1")),
    "output_adapters": (("mlp", "post_attention_layernorm"), ("mlp", "ln_2")),
}
"""For blocks whose norm comes first: the module that gives y and the norm that is given r, by where the adapter is."""


def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
    found = open_adapters(folder, path)
    check_bottlenecks(found)
    check_shape(model, "hidden_size", (found.whole["hidden_size"],), (hidden_size(model),))
    for module in found.modules:
        _places(model, module)
    if found.invertible and not hasattr(model.base_model, "embeddings"):
        raise UnknownSite("embeddings", model_name(model))
    check_parameters(model, found.head)

    def put() -> None:
        like = next(model.parameters())
        for name, fields in found.modules.items():
            values = {field: tensor(one, like) for field, one in {**found.shared, **fields}.items()}
            _put_bottleneck(model, name, found.config, values, weight)
        if found.invertible:
            _put_invertible(model, found)
        put_parameters(model, found.head)

    return live.attach(model, "adapters", put)


def _places(model: Any, name: str) -> tuple[Any, Any, Any]:
    """(module that gives y, module whose input tells r, norm after both or None) of an adapter. Raises UnknownSite."""
    block, _, place = name.rpartition(".")
    if place in _BRANCHES:
        parent = module_at(model, block)
        for branch, norm in _BRANCHES[place]:
            if hasattr(parent, branch) and hasattr(parent, norm):
                return getattr(parent, branch), getattr(parent, norm), None
        raise UnknownSite(name, model_name(model))
    parent = module_at(model, name)
    if not hasattr(parent, "dense") or not hasattr(parent, "LayerNorm"):
        raise UnknownSite(name, model_name(model))
    return parent.dense, parent, parent.LayerNorm


def _put_bottleneck(
    model: Any, name: str, config: Mapping[str, Any], values: Mapping[str, torch.Tensor], weight: float
) -> None:
    giver, beside, norm = _places(model, name)
    residual: list[Any] = [None]

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        residual[0] = given[0 if norm is None else 1]

    def edit(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        r = residual[0]
        if config.get("is_parallel"):
            x = r
        elif config.get("original_ln_before"):
            x = y + r if norm is None else norm(y + r)
        else:
            x = y
        changed = (y + weight * _bottleneck(x, config, values)).to(y.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    beside.register_forward_pre_hook(remember, with_kwargs=True)
    hook_output(giver, edit)


def _bottleneck(x: torch.Tensor, config: Mapping[str, Any], values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """s · up(f(down(x))), times the mean of a gate over all tokens where there is one."""
    x = x.to(next(iter(values.values())).dtype)
    hidden = activation_of(str(config["non_linearity"]).lower())(_layer(x, "adapter_down.0", config, values))
    scaling = config.get("scaling", 1.0)
    added = _layer(hidden, "adapter_up", config, values) * (values["scaling"] if isinstance(scaling, str) else scaling)
    if config.get("use_gating"):
        gate = (x @ values["gate.weight"].T + values["gate.bias"]).sigmoid()
        added = added * gate.mean(1, keepdim=True)
    return added


def _layer(x: torch.Tensor, name: str, config: Mapping[str, Any], values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A linear layer, or a parametrised hypercomplex one: x Σ_i kron(C_i, W_i) + b. Source: arXiv:2106.04647 eq. 3."""
    import torch

    if not config.get("phm_layer"):
        return x @ values[f"{name}.weight"].T + values[f"{name}.bias"]
    where = "" if config.get("shared_phm_rule") else f"{name}."
    rules = _product(values, f"{where}phm_rule", bool(config.get("factorized_phm_rule")))
    W = _product(values, f"{name}.W", bool(config.get("factorized_phm_W")))
    H = torch.stack([torch.kron(*pair) for pair in zip(rules, W, strict=True)]).sum(0)  # (in, out)
    found = x @ H
    return found + values[f"{name}.b"] if f"{name}.b" in values else found


def _product(values: Mapping[str, torch.Tensor], name: str, is_factorised: bool) -> torch.Tensor:
    return values[f"{name}_left"] @ values[f"{name}_right"] if is_factorised else values[name]


def _put_invertible(model: Any, found: AdaptersFolder) -> None:
    """(a + F(b), b + G(a')) of the embedded tokens' halves. Source: arXiv:2005.00052 sec. 4.3 (MAD-X), NICE.

    Differs: the paper takes it back before the output embedding, as the library does in heads of its own classes; in
    transformers' own heads, which are those here, it does not.
    """
    import torch

    values = {name: tensor(one, next(model.parameters())) for name, one in found.invertible.items()}
    activation = activation_of(str(found.config["non_linearity"]).lower())

    def net(name: str, x: torch.Tensor) -> torch.Tensor:
        hidden = activation(x @ values[f"{name}.0.weight"].T + values[f"{name}.0.bias"])
        return hidden @ values[f"{name}.2.weight"].T + values[f"{name}.2.bias"]

    def there(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        x = output.to(values["F.0.weight"].dtype)
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        a = a + net("F", b)
        return torch.cat([a, b + net("G", a)], -1).to(output.dtype)

    hook_output(model.base_model.embeddings, there)


SPEC = RuntimeSpec(
    name="adapters",
    summary="Small two-layer networks after or beside attention and feed-forward, and a head",
    source="adapters 1.3.0 methods/modeling.py",
    attach=attach,
)
