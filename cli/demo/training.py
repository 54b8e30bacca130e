"""The one training loop of the demo, and the three ways it makes a patch: LoRA, sparse and mask.

torch and peft are imported inside the functions: they run in the workshop's processes, never in the command's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Report = Callable[[int, int, float], None]
"""Called with steps done, steps in all, and the loss of the last step."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. steps > 0; lr: AdamW's peak rate, reached after a twentieth of the steps."""

    steps: int
    lr: float


def fit(
    parameters: list[nn.Parameter],
    loss_of_step: Callable[[], Tensor],
    schedule: Schedule,
    report: Report,
    keep: Mapping[nn.Parameter, Tensor] | None = None,
) -> None:
    """Train `parameters` in place: AdamW, linear warm-up, cosine decay to a twentieth, gradients clipped to norm 1.

    loss_of_step: draws its own batch and gives back a scalar loss that has a gradient.
    keep: for a parameter, a tensor of its shape of 0 and 1; where it is 0 the parameter does not move.
    """
    import torch

    warmup = max(1, schedule.steps // 20)

    def rate(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * decay)

    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(schedule.steps):
        optimizer.zero_grad()
        loss = loss_of_step()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, kept in (keep or {}).items():
            if parameter.grad is not None:
                parameter.grad *= kept
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        report(step + 1, schedule.steps, float(loss.detach()))


def add_lora(model: Any, targets: list[str], seed: int, **config: Any) -> Any:
    """The model with a fresh trainable LoRA of rank 8, alpha 16 on the modules named `targets`; the rest is frozen."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, **config))


def largest_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Where the weights changed most: by name a bool tensor of the weight's shape, True for the largest changes.

    One threshold for all matrices together, so that about `density` in (0, 1] of all their entries is True; ties at the
    threshold count. Vectors (norms) are left out. Source: LT-SFT, arXiv:2110.07560 sec. 3.
    """
    import torch

    changes = {name: (after[name] - weight).abs() for name, weight in before.items() if weight.ndim == 2}
    every = torch.cat([change.flatten() for change in changes.values()])
    kept = max(1, round(density * every.numel()))
    threshold = every.kthvalue(every.numel() - kept + 1).values
    return {name: change >= threshold for name, change in changes.items()}
