"""xlora: scales several LoRAs, by token and layer, by what a classifier says of the bare model's last hidden states.

The weight scales what is added. Source: arXiv:2402.07148, as peft saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.live import by_name, cache_of, check_shape, hidden_size, override, tensor
from adapterhub.merging.live_lora import Call, Delta, check_factors, fields_of, put_deltas
from adapterhub.merging.peft_adapter import Adapter, checked
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import EXPERT, XLORA, classifier_layers, number, scaling, xlora_experts

if TYPE_CHECKING:
    import torch


def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
    router = checked(folder, path, XLORA)
    layers = classifier_layers(router)
    experts = [checked(folder, one, EXPERT) for one in xlora_experts(folder, path, router.config)]
    for expert in experts:
        check_factors(model, expert)
    check_shape(model, "classifier", (router.config["hidden_size"],), (hidden_size(model),))
    paths = [name for name, _ in model.named_modules() if any(name in expert.modules for expert in experts)]
    outputs = len(experts) * (len(paths) if router.config.get("layerwise_scalings") else 1)
    check_shape(model, "classifier", layers[-1][0].shape[:1], (outputs,))

    def put() -> None:
        call = Call()
        deltas = {name: _delta(model, router, experts, name, place, call) for place, name in enumerate(paths)}
        put_deltas(model, deltas, weight)
        _watch(model, router, len(paths), call)

    return live.attach(model, "xlora", put)


def _delta(model: Any, router: Adapter, experts: Sequence[Adapter], path: str, place: int, call: Call) -> Delta:
    """g Σ_e s_e B_e A_e (c_e x), c the scalings (batch, tokens, experts) of this layer; 0 in the bare pass."""
    config = router.config
    fields = [fields_of(model, one.modules[path]) if path in one.modules else None for one in experts]
    scales = [
        scaling(one, one.modules[path], len(own["A"])) if own else 0.0 for one, own in zip(experts, fields, strict=True)
    ]
    overall = number(config, "global_scaling_weight", 1.0)

    def delta(x: torch.Tensor) -> torch.Tensor:
        if call.scalings is None:
            return x.new_zeros(())
        chosen = _chosen(call.scalings[:, :, place], config)
        parts = (
            scale * overall * ((x.to(own["A"].dtype) * chosen[..., e, None]) @ own["A"].T @ own["B"].T)
            for e, (own, scale) in enumerate(zip(fields, scales, strict=True))
            if own
        )
        return sum(parts, start=x.new_zeros(()))

    return delta


def _chosen(scalings: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """The scalings of one layer (batch, tokens, experts), the k largest alone, and a softmax over those if wanted."""
    import torch

    if config.get("top_k_lora") is not None:
        places = scalings.topk(config["top_k_lora"], dim=-1).indices
        scalings = scalings * torch.zeros_like(scalings).scatter(-1, places, 1)
    if config.get("enable_softmax_topk"):
        is_kept = scalings != 0
        scalings = scalings.masked_fill(~is_kept, float("-inf")).softmax(-1).masked_fill(~is_kept, 0)
    return scalings


def _watch(model: Any, router: Adapter, places: int, call: Call) -> None:
    """Every pass is two: of the bare model, whose last hidden states give the scalings, and of the adapted one."""
    config, like = router.config, next(model.parameters())
    layers = [tuple(tensor(one, like).to(like.dtype) for one in layer) for layer in classifier_layers(router)]

    def scalings(hidden: torch.Tensor) -> torch.Tensor:
        for number_, (weight, bias) in enumerate(layers):
            hidden = (hidden.relu() if number_ else hidden) @ weight.T + bias
        experts = len(config["adapters"])
        shape = (*hidden.shape[:2], places, experts)
        hidden = hidden.view(shape) if config.get("layerwise_scalings") else hidden[:, :, None].expand(shape)
        if config.get("enable_softmax", True):
            hidden = (hidden / number(config, "softmax_temperature", 1.0)).softmax(-1)
        return hidden

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = by_name(original, args, kwargs) | {"use_cache": False}
        if cache_of(given) is not None:
            raise InvalidParameter("X-LoRA passes twice over the whole sequence and takes no cache")
        call.scalings = None
        bare = original(**{**given, "output_hidden_states": True, "return_dict": True})
        call.scalings = scalings(bare.hidden_states[-1])
        return original(**given)

    override(model, "forward", forward)
    override(model, "generate", lambda original, *args, **kwargs: original(*args, **{**kwargs, "use_cache": False}))


SPEC = RuntimeSpec(
    name="xlora",
    summary="Scales several LoRAs at each token and layer by a classifier of hidden states",
    source="arXiv:2402.07148, as peft saves it",
    attach=attach,
)
