"""Training without backpropagation, of which only a seed and a number a step need be stored: MeZO.

    trainer = ZerothOrderTrainer(model, args, train_dataset=data, seed=7)
    trainer.train()
    trainer.write(Path("patch"))

Each step runs the model at W + ε·z and W - ε·z for one random direction z and moves W along it by the difference of the
losses, in two forward passes and no gradients. The Trainer's learning rate, schedule and weight decay apply; its
optimizer has nothing to do. The steps are those that the `trajectory` term replays, number for number, so a float32
model is stored exactly. Source: arXiv:2305.17333 alg. 1 and sec. 2.1; princeton-nlp/MeZO `large_models/trainer.py`.
Differs: directions are ±1, drawn by counter, so that they are the same everywhere; weights are put back from a copy
after each pass instead of by adding -2ε·z and ε·z, whose rounding would be lost to the record.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer

from adapterhub.merging import native
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.native import StoredTerm
from adapterhub.merging.ops.philox import Stream
from adapterhub.merging.training.parameters import copies, trainable, write

BANK = "steps"


class ZerothOrderTrainer(Trainer):
    """A Trainer whose steps are MeZO's, and which writes them as a `trajectory` patch.

    seed: of the directions; step t has seed + t. epsilon: how far the two passes are from W.
    Raises InvalidParameter for gradient accumulation, and for a model whose trainable weights are not float32.
    """

    def __init__(self, *args: Any, seed: int, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(*args, **options)
        assert isinstance(self.model, PreTrainedModel)
        self._base = self.model
        self._parameters = trainable(self._base)
        self._seed, self._epsilon = seed, epsilon
        self._steps: list[tuple[int, float, float]] = []
        if self.args.gradient_accumulation_steps != 1:
            raise InvalidParameter("gradient_accumulation_steps: a step here has one batch; make the batch larger")
        other = [name for name, one in self._parameters.items() if one.dtype != torch.float32]
        if other:
            raise InvalidParameter(f"{other[0]} is not float32; its steps could not be replayed: train in float32")

    @torch.no_grad()
    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """One step, recorded: its seed, (loss₊ - loss₋) / 2ε and learning rate, rounded to what is stored."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        seed, start = self._seed + len(self._steps), copies(self._parameters)
        higher = self._loss(model, inputs, start, seed, self._epsilon)
        lower = self._loss(model, inputs, start, seed, -self._epsilon)
        g = float(np.float32((higher - lower) / (2 * self._epsilon)))
        rate = float(np.float32(self._get_learning_rate()))
        for name, one in self._parameters.items():
            step = _direction(seed, name, one).mul_(g)
            if self.args.weight_decay:
                step.add_(start[name], alpha=self.args.weight_decay)
            one.copy_(start[name].sub_(step, alpha=rate))
        self._steps.append((seed, g, rate))
        return torch.tensor((higher + lower) / 2)

    def _loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], start: Mapping[str, torch.Tensor], seed: int, far: float
    ) -> float:
        for name, one in self._parameters.items():
            one.copy_(start[name].add(_direction(seed, name, one), alpha=far))
        torch.manual_seed(seed)  # both passes drop the same units
        loss = self.compute_loss(model, inputs)
        assert isinstance(loss, torch.Tensor)
        return float(loss)

    def write(self, folder: Path, *, base: Mapping[str, Any] | None = None) -> str:
        """Write the patch and give its digest. base: as in patch.json; None takes the configuration's name and type.

        Raises InvalidParameter before the first step.
        """
        if not self._steps:
            raise InvalidParameter("no step is recorded; call train() first")
        seeds, gradients, rates = zip(*self._steps, strict=True)
        fields = {"seed": np.array(seeds, np.int64), "g": np.array(gradients, "f4"), "lr": np.array(rates, "f4")}
        return write(
            folder, self._sites(), self._base, method="MeZO", base=base, seed=self._seed, shared={BANK: fields}
        )

    def _sites(self) -> Iterator[tuple[str, StoredTerm]]:
        shared = {name: f"{BANK}.{name}" for name in ("seed", "g", "lr")}
        for name, one in self._parameters.items():
            options = {"key": name, "dist": "rademacher", "decay": float(self.args.weight_decay)}
            yield name, native.term("trajectory", one.shape, options=options, shared=shared)


def _direction(seed: int, name: str, like: torch.Tensor) -> torch.Tensor:
    """The z that the trajectory term draws for this step and parameter."""
    drawn = Stream.of(seed, name).rademacher(0, like.numel())
    return torch.from_numpy(drawn).float().view(like.shape).to(like.device)
