"""Grafting: learns which few entries of a fine-tuning make its effect, by a mask over the difference of two models.

    grafting = Grafting(model, tuned, entries=10_000)  # model holds the base's weights, tuned those after tuning
    optimizers = grafting.optimizer(SGD, lr=1e6), None
    Trainer(model, args, train_dataset=data, callbacks=[grafting], optimizers=optimizers).train()
    grafting.write(Path("patch"))

The model runs with W + γ ⊙ (W_ft - W), γ = γ0 ⊙ (1 - σ(S)) + (1 - γ0) ⊙ σ(S): γ0 keeps the `entries` that fine-tuning
moved most, S starts low, so that γ starts near γ0. Gradients at the weights become those at S, which the Trainer's own
optimizer and schedule then move; the model's weights are written anew after each step. When training ends γ is rounded
to 0 or 1. Needs five copies of the weights; FSDP and DeepSpeed, which split parameters, are not for it.
Source: arXiv:2302.06600 sec. 2.2 (Grafting, the optimization problem and its relaxation by σ(S)).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from adapterhub.merging import native
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.native import StoredTerm
from adapterhub.merging.training.parameters import Weights, copies, largest, trainable, write

START = -5.0
"""Where S starts: σ(-5) is 0.0067, so that γ is nearly γ0."""


class Grafting(TrainerCallback):
    """Learns the mask in place of the weights, and writes a `mask` patch."""

    def __init__(self, model: PreTrainedModel, tuned: Weights, *, entries: int) -> None:
        self._model = model
        self._parameters = {name: one for name, one in trainable(model).items() if name in tuned}
        self._start = copies(self._parameters)
        self._delta = {name: tuned[name].detach().to(one).float() - one.float() for name, one in self._start.items()}
        total = sum(one.numel() for one in self._start.values())
        if not 1 <= entries <= total:
            raise InvalidParameter(f"entries is {entries}; from 1 to the {total} numbers of both models are possible")
        self._first = largest({name: one.abs() for name, one in self._delta.items()}, entries)
        self._logits = {name: torch.full_like(one, START).requires_grad_() for name, one in self._delta.items()}

    def optimizer(self, kind: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
        """An optimizer of S, for `Trainer(optimizers=(..., None))`."""
        return kind(list(self._logits.values()), **options)

    def mask(self) -> Mapping[str, torch.Tensor]:
        """γ rounded to what the patch stores: true where the difference counts."""
        with torch.no_grad():
            return {name: self._gamma(name) > 0.5 for name in self._parameters}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Run with γ from the first step on; S lies where the model does."""
        for name, one in self._parameters.items():
            for held in (self._start, self._delta, self._first):
                held[name] = held[name].to(one.device)
            self._logits[name].data = self._logits[name].data.to(one.device)
        self._put({name: self._gamma(name) for name in self._parameters})

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Turn gradients at the weights into gradients at S."""
        for name, one in self._parameters.items():
            if one.grad is not None:
                gradient = one.grad.float() * self._delta[name]
                self._logits[name].grad = torch.autograd.grad(self._gamma(name), self._logits[name], gradient)[0]
                one.grad = None

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Run the next step with the γ that S now gives."""
        self._put({name: self._gamma(name) for name in self._parameters})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the model as the patch makes it, with γ rounded."""
        self._put(self.mask())

    def write(self, folder: Path, *, base: Mapping[str, Any] | None = None) -> str:
        """Write the patch and give its digest. base: as in patch.json; None takes the configuration's name and type.

        Raises InvalidPatch where the mask selects nothing.
        """
        return write(folder, self._sites(), self._model, method="grafting", base=base)

    def _sites(self) -> Iterator[tuple[str, StoredTerm]]:
        for name, selected in self.mask().items():
            if selected.any():
                yield name, native.select(selected.cpu().numpy(), self._delta[name].cpu().numpy())

    def _gamma(self, name: str) -> torch.Tensor:
        chance = torch.sigmoid(self._logits[name])
        return torch.where(self._first[name], 1 - chance, chance)

    @torch.no_grad()
    def _put(self, gamma: Mapping[str, torch.Tensor]) -> None:
        """W + γ ⊙ Δ in float32, rounded once: what folding the patch gives, once γ is 0 or 1."""
        for name, one in self._parameters.items():
            one.copy_(self._start[name].float() + gamma[name] * self._delta[name])
