"""poly: an inventory of low-rank skills and for each task a mixture of them, as peft's POLY saves it.

The weight scales what is added. Source: arXiv:2202.13914, arXiv:2211.03831, as peft saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.live import check_shape, override
from adapterhub.merging.live_lora import Call, Delta, attach_deltas, features
from adapterhub.merging.peft_adapter import Adapter, Module
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import POLY

if TYPE_CHECKING:
    import torch


def _delta(adapter: Adapter, module: Module, fields: Mapping[str, torch.Tensor], call: Call) -> Delta:
    """x A B / r, A and B the task's mixtures of skills, split by split."""
    A, B, logits = fields["A"], fields["B"], fields["logits"]
    splits, skills, _, r = A.shape

    def delta(x: torch.Tensor) -> torch.Tensor:
        if call.task_ids is None:
            raise InvalidParameter("this patch mixes its skills by the task: task_ids, one a row, must be given")
        tasks = call.task_ids.to(logits.device).repeat_interleave(len(x) // len(call.task_ids))  # a row has its beams
        chosen = logits[tasks].view(-1, splits, skills).sigmoid()
        chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-12)
        mixed_A = (chosen[..., None, None] * A).sum(2).reshape(len(chosen), -1, r)  # (batch, in, r)
        mixed_B = (chosen[..., None, None] * B).sum(2).transpose(1, 2).reshape(len(chosen), r, -1)  # (batch, r, out)
        return x.to(A.dtype) @ mixed_A @ mixed_B / r

    return delta


def _watch(model: Any, adapter: Adapter, call: Call) -> None:
    def named(original: Callable[..., Any], *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
        if task_ids is None:  # of a call inside generate, which knows the tasks
            return original(*args, **kwargs)
        before, call.task_ids = call.task_ids, task_ids
        try:
            return original(*args, **kwargs)
        finally:
            call.task_ids = before

    override(model, "forward", named, extra=("task_ids",))
    if model.can_generate():
        override(model, "generate", named, extra=("task_ids",))


def _fits(model: Any, adapter: Adapter) -> None:
    for path, module in adapter.modules.items():
        inner, outer = features(model, path)
        A, B = module.fields["A"].shape, module.fields["B"].shape
        check_shape(model, f"{path}.A", A, (*A[:2], inner // A[0], A[3]))
        check_shape(model, f"{path}.B", B, (*B[:3], outer // B[0]))


SPEC = RuntimeSpec(
    name="poly",
    summary="Low-rank skills, mixed for each task by a trained table",
    source="arXiv:2202.13914, arXiv:2211.03831, as peft saves it",
    attach=attach_deltas("poly", POLY, _delta, fits=_fits, watch=_watch),
)
