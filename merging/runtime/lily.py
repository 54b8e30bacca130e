"""lily: low-rank factors A, and experts B mixed by a router, as peft's LILY saves them.

The weight scales what is added. Source: arXiv:2407.09946, as peft saves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging.live import check_shape
from adapterhub.merging.live_lora import Call, Delta, attach_deltas, features
from adapterhub.merging.peft_adapter import Adapter, Module
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import LILY, number

if TYPE_CHECKING:
    import torch


def _delta(adapter: Adapter, module: Module, fields: Mapping[str, torch.Tensor], call: Call) -> Delta:
    """s · h Σ_e p_e B_e for h = A x, p the mean over all tokens of softmax(router h)."""
    experts = fields["router"].shape[0]
    B = fields["B"].view(experts, -1, fields["B"].shape[1])  # (experts, r, out)
    scale = number(adapter.config, "scaling", 1.0)

    def delta(x: torch.Tensor) -> torch.Tensor:
        hidden = x.to(B.dtype) @ fields["A"].T
        chosen = (hidden @ fields["router"].T).softmax(-1).reshape(-1, experts).mean(0)
        mixed = (chosen.view(-1, 1, 1) * B).sum(0)  # (r, out)
        return scale * (hidden @ mixed)

    return delta


def _fits(model: Any, adapter: Adapter) -> None:
    for path, module in adapter.modules.items():
        inner, outer = features(model, path)
        check_shape(model, f"{path}.A", module.fields["A"].shape, (module.fields["A"].shape[0], inner))
        check_shape(model, f"{path}.B", module.fields["B"].shape, (module.fields["B"].shape[0], outer))


SPEC = RuntimeSpec(
    name="lily",
    summary="Low-rank factors shared between layers, mixed by a router over the sequence",
    source="arXiv:2407.09946, as peft saves it",
    attach=attach_deltas("lily", LILY, _delta, fits=_fits),
)
