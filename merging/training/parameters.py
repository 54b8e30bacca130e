"""What every training helper shares: the weights before the first step, and a patch of what became of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from adapterhub.merging.encodings import Array
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.native import PatchWriter, StoredTerm, Values

Weights = Mapping[str, torch.Tensor]


def trainable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that training may move, by name; tied ones once. Raises InvalidPatch where there are none."""
    found = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not found:
        raise InvalidPatch("no parameter of the model requires a gradient; a patch needs one that may move")
    return found


def copies(parameters: Weights) -> dict[str, torch.Tensor]:
    """The values as they are now."""
    return {name: one.detach().clone() for name, one in parameters.items()}


def difference(trained: torch.Tensor, start: torch.Tensor) -> Array:
    """trained - start in float32, as the fold adds it."""
    return (trained.detach().cpu().float() - start.cpu().float()).numpy()


def largest(sizes: Weights, count: int) -> dict[str, torch.Tensor]:
    """True at the `count` largest entries of all tensors together; among equals in order of tensors and rows."""
    flat = torch.cat([one.flatten() for one in sizes.values()])
    least = flat.kthvalue(flat.numel() - count + 1).values
    is_equal = flat == least
    room = count - int((flat > least).sum())
    chosen = (flat > least) | (is_equal & (is_equal.cumsum(0) <= room))
    parts = torch.split(chosen, [one.numel() for one in sizes.values()])
    return {name: part.view(size.shape) for part, (name, size) in zip(parts, sizes.items(), strict=True)}


def base_of(model: PreTrainedModel) -> Mapping[str, Any]:
    """What the model's own configuration says of the base: the name it was loaded from, and its type."""
    named = {"repo_id": model.config.name_or_path or None, "model_type": model.config.model_type}
    return {key: value for key, value in named.items() if value is not None}


def write(
    folder: Path,
    sites: Iterable[tuple[str, StoredTerm]],
    model: PreTrainedModel,
    *,
    method: str,
    base: Mapping[str, Any] | None,
    seed: int | None = None,
    shared: Mapping[str, Mapping[str, Values]] | None = None,
) -> str:
    """Write the terms, one tensor in memory at a time, and give the patch's digest. base: None takes `base_of`.

    Raises InvalidPatch where there is no term, which is where nothing moved.
    """
    training: dict[str, Any] = {"method": method, "library": "adapterhub"}
    with PatchWriter(folder) as writer:
        for bank, fields in (shared or {}).items():
            writer.share(bank, fields)
        for name, one in sites:
            writer.add(name, (one,))
        seeded = {} if seed is None else {"seed": seed}
        return writer.finish(base=base_of(model) if base is None else base, training=training | seeded)
