"""Half fine-tuning: in every block, half of the modules of each category train and the other half stay the base's.

    tuning = HalfTuning(model, seed=7)
    Trainer(model, args, train_dataset=data, callbacks=[tuning]).train()
    tuning.write(Path("patch"))

Categories are what directly lies in a block: attention, feed-forward, and all its norms together; a bias goes with its
matrix. Where a category has an odd number of modules, blocks take the larger and the smaller half in turn. What lies
outside the blocks, embeddings and heads, trains unless it is frozen before. The choice is drawn by counter from (seed,
round, block, category), so that it is the same everywhere; `round` is for training in several rounds.
Source: arXiv:2404.18466 sec. 3 (category-level selection). Differs: the draw, which the paper leaves to chance.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from adapterhub.merging import native
from adapterhub.merging.native import StoredTerm
from adapterhub.merging.ops.halves import half_of_each_category
from adapterhub.merging.training.parameters import copies, difference, trainable, write


class HalfTuning(TrainerCallback):
    """Freezes half of a model while it trains, and writes a `dense` patch of what moved.

    frozen: names of the parameters that stay bit for bit the base's.
    """

    def __init__(self, model: PreTrainedModel, *, seed: int, round: int = 0) -> None:
        self._model, self._seed = model, seed
        self._parameters = trainable(model)
        self._start = copies(self._parameters)
        self.frozen = half_of_each_category(self._parameters, seed=seed, round=round)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Freeze the half."""
        self._let_train(False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the model as trainable as it came."""
        self._let_train(True)

    def _let_train(self, may: bool) -> None:
        for name in self.frozen:
            self._parameters[name].requires_grad_(may)

    def write(self, folder: Path, *, base: Mapping[str, Any] | None = None) -> str:
        """Write the patch and give its digest. base: as in patch.json; None takes the configuration's name and type.

        Raises InvalidPatch where nothing moved.
        """
        return write(folder, self._sites(), self._model, method="HFT", base=base, seed=self._seed)

    def _sites(self) -> Iterator[tuple[str, StoredTerm]]:
        for name, one in self._parameters.items():
            delta = difference(one, self._start[name])
            if delta.any():
                yield name, native.term("dense", delta.shape, delta=delta)
