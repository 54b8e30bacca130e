"""steering: h + k · s · v on the outputs of some modules, s its strength and k the weight.

Source: arXiv:2308.10248, arXiv:2312.06681 (CAA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging.live_modules import Call, Edit, attach_edits
from adapterhub.merging.native_runtime import RuntimePatch
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.representations import STEERING

if TYPE_CHECKING:
    import torch


def _edit(patch: RuntimePatch, fields: Mapping[str, torch.Tensor], module: Any, call: Call) -> Edit:
    """y + k · s · v."""
    vector, strength = fields["vector"], patch.options["strength"]
    return lambda x, y: strength * vector.expand_as(y)


SPEC = RuntimeSpec(
    name="steering",
    summary="A vector added to the hidden states that some modules give",
    source="arXiv:2308.10248, arXiv:2312.06681 (CAA)",
    attach=attach_edits(STEERING, _edit, widths={"vector": 0}, has_weight=True),
)
