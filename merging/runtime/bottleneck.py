"""bottleneck: y + s · up(f(down(x))) on some modules, x their output, or their input where it is parallel.

Source: arXiv:1902.00751, arXiv:2110.04366.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging.live_modules import Call, Edit, activation_of, attach_edits
from adapterhub.merging.native_runtime import RuntimePatch
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.representations import BOTTLENECK

if TYPE_CHECKING:
    import torch


def _edit(patch: RuntimePatch, fields: Mapping[str, torch.Tensor], module: Any, call: Call) -> Edit:
    """s · up(f(down(x))), x the module's input where the bottleneck is parallel, else its output."""
    from torch.nn.functional import layer_norm, linear

    options, activation = patch.options, activation_of(patch.options["activation"])

    def edit(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inner = (x if options["is_parallel"] else y).to(fields["up.weight"].dtype)
        if "norm.weight" in fields:
            bias = fields.get("norm.bias")
            inner = layer_norm(inner, inner.shape[-1:], fields["norm.weight"], bias, options["norm_eps"])
        hidden = activation(linear(inner, fields["down.weight"], fields.get("down.bias")))
        added: torch.Tensor = options["scaling"] * linear(hidden, fields["up.weight"], fields.get("up.bias"))
        return added

    return edit


SPEC = RuntimeSpec(
    name="bottleneck",
    summary="A small two-layer network after or beside some modules",
    source="arXiv:1902.00751, arXiv:2110.04366",
    attach=attach_edits(BOTTLENECK, _edit, widths={"up.weight": 0}, has_weight=True),
)
