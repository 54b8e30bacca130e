"""A base whose layers are repeated, as peft's `layer_replication` makes one: the adapter's layers are its layers.

`[[0, 4], [2, 5]]` of a base of five layers makes one of seven: 0 1 2 3 2 3 4. The copies begin with equal weights; each
takes its own delta. Never imports torch.
Source: peft 0.21 `tuners/tuners_utils.py`, replicate_layers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, TensorHandle
from adapterhub.merging.errors import BaseMismatch, InvalidPatch

Ranges = tuple[tuple[int, int], ...]
"""First layer and one past the last of each run, in the order of the result's layers."""

MAXLAYERS = 10_000

LAYER = re.compile(r"(?P<list>(?:.*\.)?(?:layers|encoder\.layer|h))\.(?P<number>\d+)\.(?P<rest>.+)")
"""Where a stored parameter's layer stands in its name. Llama and its like, BERT and its like, Falcon."""

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Keys under which configurations have the number of layers."""


def layer_ranges(config: Mapping[str, Any], file: str) -> Ranges:
    """What `layer_replication` of an adapter's configuration says, () where nothing. Raises InvalidPatch."""
    said = config.get("layer_replication") or []
    is_list = isinstance(said, list) and all(isinstance(one, list) and len(one) == 2 for one in said)
    if not is_list or any(type(edge) is not int or edge < 0 for one in said for edge in one):
        raise InvalidPatch(f"{file}: layer_replication is {str(said)[:100]}; a list of [first, end] is expected")
    if any(start >= end for start, end in said) or sum(end - start for start, end in said) > MAXLAYERS:
        raise InvalidPatch(
            f"{file}: layer_replication is {str(said)[:100]}; each range goes upwards, to {MAXLAYERS} layers in all"
        )
    return tuple((start, end) for start, end in said)


def replicated(base: Checkpoint, ranges: Ranges) -> Checkpoint:
    """`base` with its layers repeated; nothing is copied, repeated tensors are the same handles. As it is for ().

    Raises BaseMismatch where the base has no one list of layers, or too few of them.
    """
    if not ranges:
        return base
    layers: dict[tuple[str, int], dict[str, TensorHandle]] = {}
    others: dict[str, TensorHandle] = {}
    for name, handle in base.tensors.items():
        found = LAYER.fullmatch(name)
        if found is None:
            others[name] = handle
        else:
            layers.setdefault((found["list"], int(found["number"])), {})[found["rest"]] = handle
    lists = {where for where, _ in layers}
    if len(lists) != 1:
        raise BaseMismatch(f"{base.name}: its layers are in {len(lists)} lists; layer_replication needs one")
    [where] = lists
    count = max(number for _, number in layers) + 1
    if max(end for _, end in ranges) > count:
        raise BaseMismatch(f"{base.name}: has {count} layers; layer_replication wants {max(e for _, e in ranges)}")
    order = [number for start, end in ranges for number in range(start, end)]
    repeated = {
        f"{where}.{place}.{rest}": handle
        for place, number in enumerate(order)
        for rest, handle in layers[where, number].items()
    }
    tensors = dict(sorted((others | repeated).items()))
    return replace(base, tensors=tensors, config=_config(base.config, count, order))


def _config(config: Mapping[str, Any], count: int, order: Sequence[int]) -> Mapping[str, Any]:
    """The configuration of the repeated model: its number of layers, and what it says layer by layer."""
    found = dict(config)
    for key in COUNTS:
        if found.get(key) == count:
            found[key] = len(order)
    for key, value in found.items():
        if key.startswith("layer") and isinstance(value, list) and len(value) == count:
            found[key] = [value[number] for number in order]
    return found
