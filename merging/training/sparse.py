"""Lottery-ticket sparse fine-tuning: train everything, keep the entries that moved most, rewind, train those alone.

    tuning = SparseTuning(model, entries=100_000)
    Trainer(model, args, train_dataset=data, callbacks=[tuning]).train()    # everything moves
    tuning.choose()                                                         # and is taken back
    Trainer(model, args, train_dataset=data, callbacks=[tuning]).train()    # only the chosen entries move
    tuning.write(Path("patch"))

What is not to move at all is frozen with `requires_grad_(False)` before. Entries that were not chosen are bit for bit
the base's after every step, whatever the optimizer does. Needs three copies of the weights; FSDP and DeepSpeed, which
split parameters, are not for it. Source: arXiv:2110.07560 sec. 3.1 (the k entries of largest |θ1 - θ0|, rewound to θ0).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainerCallback

from adapterhub.merging import native
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.native import StoredTerm
from adapterhub.merging.training.parameters import copies, difference, largest, trainable, write


class SparseTuning(TrainerCallback):
    """Both phases' part in the Trainer, and the `sparse` patch they make.

    entries: how many of all trainable numbers the patch may change, at least 1 and at most all.
    """

    def __init__(self, model: PreTrainedModel, *, entries: int) -> None:
        self._model = model
        self._parameters = trainable(model)
        total = sum(one.numel() for one in self._parameters.values())
        if not 1 <= entries <= total:
            raise InvalidParameter(
                f"entries is {entries}; from 1 to the model's {total} trainable numbers are possible"
            )
        self._entries = entries
        self._start = copies(self._parameters)
        self._hooks: list[RemovableHandle] = []
        self.chosen: Mapping[str, torch.Tensor] | None = None
        """By parameter: true where an entry may move in the second phase; None before `choose`."""

    def choose(self) -> None:
        """Choose the entries that moved most so far, and put every weight back. Of equals the first ones are taken."""
        moved = {
            name: (one.detach().float() - self._start[name].to(one.device).float()).abs()
            for name, one in self._parameters.items()
        }
        self.chosen = largest(moved, self._entries)
        with torch.no_grad():
            for name, one in self._parameters.items():
                one.copy_(self._start[name])

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """In the second phase: gradients of other entries are zero, so that clipping and moments see the chosen."""
        for name, chosen in (self.chosen or {}).items():
            self._hooks.append(self._parameters[name].register_hook(_Masked(chosen)))  # type: ignore[no-untyped-call]

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Undo what moved other entries all the same: decoupled weight decay does."""
        with torch.no_grad():
            for name, chosen in (self.chosen or {}).items():
                one = self._parameters[name]
                one.copy_(torch.where(chosen.to(one.device), one, self._start[name].to(one.device)))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Take the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()

    def write(self, folder: Path, *, base: Mapping[str, Any] | None = None) -> str:
        """Write the patch and give its digest. base: as in patch.json; None takes the configuration's name and type.

        Raises InvalidParameter before `choose`, InvalidPatch where nothing moved.
        """
        if self.chosen is None:
            raise InvalidParameter("no entries are chosen; call choose() after the first phase and train again")
        return write(folder, self._sites(), self._model, method="LT-SFT", base=base)

    def _sites(self) -> Iterator[tuple[str, StoredTerm]]:
        for name, one in self._parameters.items():
            delta = difference(one, self._start[name])
            if delta.any():
                yield name, native.sparse(delta)


class _Masked:
    """A gradient with zeros where entries are not chosen."""

    def __init__(self, chosen: torch.Tensor) -> None:
        self._chosen = chosen

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self._chosen.to(gradient.device)
