"""loramoe: low-rank experts and a router over them at each token, as LoRAMoE's fork of peft saves them.

The weight scales what is added. Source: arXiv:2312.09979; its fork of peft, tuners/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging.live import check_shape
from adapterhub.merging.live_lora import Call, Delta, attach_deltas, check_factors, features
from adapterhub.merging.peft_adapter import Adapter, Module
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import LORAMOE, scaling

if TYPE_CHECKING:
    import torch


def _delta(adapter: Adapter, module: Module, fields: Mapping[str, torch.Tensor], call: Call) -> Delta:
    """s · Σ_j softmax(route x)_j B_j A_j x."""
    experts = int(adapter.config["lora_nums"])
    scale = scaling(adapter, module, fields["A0"].shape[0])

    def delta(x: torch.Tensor) -> torch.Tensor:
        x = x.to(fields["route"].dtype)
        chosen = (x @ fields["route"].T).softmax(-1)  # (…, experts)
        parts = (chosen[..., j, None] * (x @ fields[f"A{j}"].T @ fields[f"B{j}"].T) for j in range(experts))
        return scale * sum(parts, start=x.new_zeros(()))

    return delta


def _fits(model: Any, adapter: Adapter) -> None:
    check_factors(model, adapter)
    for path, module in adapter.modules.items():
        route = module.fields["route"].shape
        check_shape(model, f"{path}.route", route, (route[0], features(model, path)[0]))


SPEC = RuntimeSpec(
    name="loramoe",
    summary="Low-rank experts, mixed for each token by a router",
    source="arXiv:2312.09979; its fork of peft, tuners/lora.py",
    attach=attach_deltas("loramoe", LORAMOE, _delta, fits=_fits),
)
