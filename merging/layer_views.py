"""Models and patches as some of their layers, numbered anew: what a stack of slices is made of. Nothing is copied.

Never imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.errors import BaseMismatch
from adapterhub.merging.patch import Patch
from adapterhub.merging.replicas import COUNTS, LAYER
from adapterhub.merging.sites import is_output_embedding


@dataclass(frozen=True)
class View:
    """Layers first..end of a model, of which the first becomes layer `start`."""

    first: int
    end: int
    start: int = 0

    def name(self, name: str) -> str | None:
        """What a parameter is called in the view; None where it lies in another layer."""
        found = LAYER.fullmatch(name)
        if found is None:
            return name
        number = int(found["number"])
        if not self.first <= number < self.end:
            return None
        return f"{found['list']}.{number - self.first + self.start}.{found['rest']}"

    def of_model(self, model: Checkpoint) -> Checkpoint:
        """The model's other tensors, and these of its layers. Raises BaseMismatch where it has no such layers."""
        count = layer_count(model)
        if self.end > count:
            raise BaseMismatch(f"{model.name}: has {count} layers; the recipe takes {self.first} to {self.end}")
        named = ((self.name(name), handle) for name, handle in model.tensors.items())
        return replace(model, tensors=dict(sorted((name, handle) for name, handle in named if name is not None)))

    def of_patch(self, patch: Patch) -> Patch:
        """The patch on those layers, and outside of layers."""
        named = ((self.name(term.site), term) for term in patch.terms)
        return replace(patch, terms=tuple(replace(term, site=name) for name, term in named if name is not None))


def layer_count(model: Checkpoint) -> int:
    """How many layers a model has. Raises BaseMismatch where they are in no list, or in several."""
    found = [one for one in map(LAYER.fullmatch, model.tensors) if one is not None]
    lists = {one["list"] for one in found}
    if len(lists) != 1:
        raise BaseMismatch(
            f"{model.name}: its layers are in {len(lists)} lists ({', '.join(sorted(lists)) or 'none'}); layers are "
            "numbered in models that have one"
        )
    return max(int(one["number"]) for one in found) + 1


def is_before_layers(name: str) -> bool:
    """Whether a parameter outside of layers comes before them: an embedding of what goes in, by its name."""
    return not is_output_embedding(name) and any(word in name for word in ("embed", "wte", "wpe", "shared."))


def in_slice(name: str, *, is_first: bool, is_last: bool) -> bool:
    """Whether a slice of a stack gives a parameter: of those outside of layers, the first what comes before them."""
    return LAYER.fullmatch(name) is not None or (is_first if is_before_layers(name) else is_last)


def stacked_config(configs: Iterable[tuple[Mapping[str, Any], int, Sequence[int]]]) -> dict[str, Any]:
    """The first configuration for the layers of all: their number, and what it says layer by layer.

    configs: by slice the configuration, the layers that it is for, and those that are taken of them.
    """
    slices = list(configs)
    first, count, _ = slices[0]
    total = sum(len(numbers) for _, _, numbers in slices)
    found = {key: total if key in COUNTS and value == count else value for key, value in first.items()}
    for key, value in first.items():
        if key.startswith("layer") and isinstance(value, list) and len(value) == count:
            found[key] = [_at(config, key, value, number) for config, _, numbers in slices for number in numbers]
    return found


def _at(config: Mapping[str, Any], key: str, default: Sequence[Any], number: int) -> Any:
    told = config.get(key)
    values = told if isinstance(told, list) and number < len(told) else default
    return values[min(number, len(values) - 1)]
