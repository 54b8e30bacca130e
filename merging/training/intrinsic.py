"""Training in few dimensions: W = W0 + P·θ, where a seed stands for P and only the d numbers of θ are trained.

    tuning = IntrinsicTuning(model, dimensions=256, seed=7)
    optimizers = tuning.optimizer(AdamW, lr=0.1), None
    Trainer(model, args, train_dataset=data, callbacks=[tuning], optimizers=optimizers).train()
    tuning.write(Path("patch"))

All parameters share θ, each has a P of its own, keyed by its name. Gradients at the weights become those at θ, which
the Trainer's own optimizer and schedule move; the weights are written anew after each step, exactly as a fold makes
them. Projections run on the CPU, at every step over the whole model: minutes a step for billions of weights. FSDP and
DeepSpeed, which split parameters, are not for it. Source: arXiv:2012.13255 eq. 2 and 3; arXiv:1804.08838 sec. 2.
Differs: P is drawn by our counter-based generator instead of the order of one machine's calls.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from adapterhub.merging import native
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.native import StoredTerm
from adapterhub.merging.ops.philox import Array, Stream
from adapterhub.merging.ops.projections import PROJECTIONS, TRANSPOSED
from adapterhub.merging.training.parameters import copies, trainable, write

BANK = "intrinsic"
DISTRIBUTION = "rademacher"


class IntrinsicTuning(TrainerCallback):
    """Trains θ in place of the weights, and writes a `seeded` patch.

    dimensions: d, at least 1. projection: "fastfood", or "dense" for small models.
    """

    def __init__(self, model: PreTrainedModel, *, dimensions: int, seed: int, projection: str = "fastfood") -> None:
        if dimensions < 1 or projection not in PROJECTIONS:
            names = ", ".join(PROJECTIONS)
            raise InvalidParameter(f"{dimensions} dimensions by {projection!r}: at least 1, by one of {names}")
        self._model, self._seed, self._projection = model, seed, projection
        self._parameters = trainable(model)
        self._start = copies(self._parameters)
        self.theta = torch.zeros(dimensions, requires_grad=True)

    def optimizer(self, kind: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
        """An optimizer of θ, for `Trainer(optimizers=(..., None))`."""
        return kind([self.theta], **options)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """θ lies where the model does."""
        self.theta.data = self.theta.data.to(self._model.device)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Turn gradients at the weights into the one at θ."""
        total = np.zeros(self.theta.numel())
        for name, one in self._parameters.items():
            if one.grad is not None:
                gradient = one.grad.float().cpu().numpy().reshape(-1)
                stream = Stream.of(self._seed, name)
                total += TRANSPOSED[self._projection](gradient, total.size, stream, DISTRIBUTION)
                one.grad = None
        self.theta.grad = torch.from_numpy(total).to(self.theta)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Run the next step with W0 + P·θ in float32, rounded once, as folding makes it."""
        with torch.no_grad():
            for name, one in self._parameters.items():
                delta = torch.from_numpy(self._delta(name, one.numel())).view(one.shape).to(one.device)
                one.copy_(self._start[name].to(one.device).float() + delta)

    def write(self, folder: Path, *, base: Mapping[str, Any] | None = None) -> str:
        """Write the patch and give its digest. base: as in patch.json; None takes the configuration's name and type."""
        theta = {BANK: {"theta": self.theta.detach().cpu().numpy()}}
        method = "intrinsic dimension"
        return write(folder, self._sites(), self._model, method=method, base=base, seed=self._seed, shared=theta)

    def _sites(self) -> Iterator[tuple[str, StoredTerm]]:
        options = {"seed": self._seed, "projection": self._projection, "dist": DISTRIBUTION}
        for name, one in self._parameters.items():
            shared = {"theta": f"{BANK}.theta"}
            yield name, native.term("seeded", one.shape, options={**options, "key": name}, shared=shared)

    def _delta(self, name: str, numel: int) -> Array:
        theta = self.theta.detach().double().cpu().numpy()
        return PROJECTIONS[self._projection](theta, numel, Stream.of(self._seed, name), DISTRIBUTION)
