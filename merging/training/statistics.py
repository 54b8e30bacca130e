"""What RegMean and Fisher merging ask of a patch: collected with the tuned model on samples of the patch's own data.

    statistics = Statistics(model)              # with the patch in it: tuned, folded, or peft's live adapter
    statistics.collect_grams(batches)           # for regmean: what goes into every linear layer
    statistics.collect_fisher(samples)          # for fisher: squared gradients, one sample at a time
    statistics.write(Path("patch"))             # statistics.safetensors beside the patch

Batches are what the model takes, dicts of tensors; padding is left out by `attention_mask`. A few hundred samples are
usual. All parameters that a merge touches are needed of all its inputs, so that every patch is asked for the same:
`sites` restricts them. Grams need 4·n² bytes in the file halved, for inputs of n numbers once for all layers that share
them, and twice that in memory; a Fisher matrix as many numbers as the parameter.
Source: arXiv:2212.09849 sec. 3.2; arXiv:2111.09832 sec. 3.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.merging.checkpoint import SafetensorsWriter
from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.ops.grams import triangle
from adapterhub.merging.ops.tensors import to_bytes
from adapterhub.merging.sites import stored_name
from adapterhub.merging.statistics import FILE

Batch = Mapping[str, torch.Tensor]


class Statistics:
    """Collects, and writes the file beside a patch. sites: whether a parameter, by its stored name, is wanted."""

    def __init__(self, model: nn.Module, *, sites: Callable[[str], bool] = lambda name: True) -> None:
        self._model = model
        self._wanted = {
            name: parameter
            for live, parameter in model.named_parameters()
            if (name := _base_name(live, model)) is not None and sites(name)
        }
        self._grams: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._inputs: dict[str, str] = {}
        self._transposed: list[str] = []
        self._fisher: dict[str, torch.Tensor] = {}
        self._samples = 0

    @torch.no_grad()
    def collect_grams(self, batches: Iterable[Batch]) -> None:
        """Run the model on batches and add what goes into its linear layers. Raises InvalidParameter for none."""
        names = {id(parameter): name for name, parameter in self._wanted.items()}
        layers = {
            names[id(module.weight)]: module
            for module in self._model.modules()
            if isinstance(module, nn.Linear | Conv1D) and id(module.weight) in names
        }
        self._transposed = sorted(name for name, module in layers.items() if isinstance(module, Conv1D))
        with _evaluating(self._model):
            for batch in batches:
                self._add_grams(layers, batch)
        if not self._counts:
            raise InvalidParameter("no batch ran through a linear layer that is wanted; give at least one")

    def _add_grams(self, layers: Mapping[str, nn.Module], batch: Batch) -> None:
        seen: list[tuple[torch.Tensor, str]] = []

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                source = next((one for tensor, one in seen if tensor is inputs[0]), name)
                if source == name:
                    seen.append((inputs[0], name))
                self._note(name, source, inputs[0], batch.get("attention_mask"))

            return add

        handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
        try:
            self._model(**batch)
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, source: str, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Add one layer's input, where no other layer took the very tensor before; who shares is the wiring's alone."""
        if self._inputs.setdefault(name, source) != name:
            return
        is_padded = mask is not None and mask.shape == x.shape[:-1]
        rows = (x[mask.bool()] if is_padded and mask is not None else x.reshape(-1, x.shape[-1])).float()
        gram = (rows.T @ rows).double()
        self._grams[name] = self._grams[name] + gram if name in self._grams else gram
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def collect_fisher(self, samples: Iterable[Batch]) -> None:
        """Add the squared gradients of the loss at every sample, each a batch of one with its labels.

        Raises InvalidParameter for no sample, and where the model gives no loss.
        """
        required = {name: parameter.requires_grad for name, parameter in self._wanted.items()}
        with _evaluating(self._model):
            try:
                for parameter in self._wanted.values():
                    parameter.requires_grad_(True)
                for sample in samples:
                    self._add_squares(sample)
            finally:
                for name, parameter in self._wanted.items():
                    parameter.requires_grad_(required[name])
        if not self._samples:
            raise InvalidParameter("no sample was given; a Fisher matrix is a mean over at least one")

    def _add_squares(self, sample: Batch) -> None:
        loss = self._model(**sample).loss
        if loss is None:
            raise InvalidParameter("the model gives no loss; every sample needs its labels")
        found = torch.autograd.grad(loss, list(self._wanted.values()), allow_unused=True)
        for name, gradient in zip(self._wanted, found, strict=True):
            if gradient is not None:
                square = gradient.detach().float().square()
                self._fisher[name] = self._fisher[name] + square if name in self._fisher else square
        self._samples += 1

    def write(self, folder: Path) -> Path:
        """Write the file into a folder and give its path. Raises InvalidParameter before anything is collected."""
        if not self._grams and not self._fisher:
            raise InvalidParameter("nothing was collected; call collect_grams or collect_fisher first")
        tensors = {
            f"{name}::gram": triangle(gram / self._counts[name]).float() for name, gram in self._grams.items()
        } | {f"{name}::fisher": square / self._samples for name, square in self._fisher.items()}
        file = folder / FILE
        with SafetensorsWriter(
            file, {name: ("F32", tuple(one.shape)) for name, one in tensors.items()}, self._metadata(tensors)
        ) as writer:
            for name in writer.layout.offsets:
                writer.write(name, to_bytes(tensors[name]))
            writer.finish()
        return file

    def _metadata(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
        squares = sum(float(one.double().square().sum()) for name, one in tensors.items() if name.endswith("::fisher"))
        told = {"inputs": self._inputs, "counts": self._counts, "transposed": self._transposed}
        return {"format": "pt", "fisher_norm": repr(squares**0.5)} | {
            key: json.dumps(value, sort_keys=True) for key, value in told.items()
        }


def _base_name(live: str, model: nn.Module) -> str | None:
    """The base's stored name of a live parameter, None for one that an adapter of peft's brought."""
    name = live.removeprefix("base_model.model.") if hasattr(model, "peft_config") else live
    if hasattr(model, "peft_config") and re.search(r"\.(lora_|modules_to_save\.)", name):
        return None
    name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
    config: Any = getattr(model, "config", None)
    return stored_name(name, getattr(config, "model_type", None))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
