"""Halves of a model's parameters, drawn by counter: the same for the same names and seed everywhere. Never torch.

What directly lies in a block is a category: attention, feed-forward, and all its norms together; a bias goes with its
matrix. Where a category has an odd number of modules, blocks take the smaller and the larger half in turn.
Source: arXiv:2404.18466 sec. 3 (model-, layer- and category-level selection). Differs: the draw, which the paper leaves
to chance.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from adapterhub.merging.ops.philox import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Block = tuple[str, int]
"""What stands before a block's number, and the number."""


def half_of_each_category(names: Iterable[str], *, seed: int, round: int = 0) -> frozenset[str]:
    """Half of the modules of every category of every block; nothing outside the blocks."""
    parameters = _by_module(names)
    modules: dict[tuple[Block, str], list[str]] = defaultdict(list)
    for module in sorted(parameters):
        place = _place(module)
        if place is not None:
            modules[place].append(module)
    turns: dict[str, int] = defaultdict(int)
    chosen: list[str] = []
    for ((before, number), category), found in sorted(modules.items()):
        order = Stream.of(seed, f"{round}/{before}{number}/{category}").permutation(len(found))
        count = (len(found) + turns[category] % 2) // 2
        turns[category] += 1
        chosen += [name for index in order[:count] for name in parameters[found[index]]]
    return frozenset(chosen)


def half_of_the_layers(names: Iterable[str], *, seed: int) -> frozenset[str]:
    """All of half of the blocks, of an odd number the smaller half; nothing outside the blocks."""
    blocks: dict[Block, list[str]] = defaultdict(list)
    for name in names:
        place = _place(name.rpartition(".")[0])
        if place is not None:
            blocks[place[0]].append(name)
    return _drawn({str(block): blocks[block] for block in sorted(blocks)}, seed, "layers")


def half_of_the_tensors(names: Iterable[str], *, seed: int) -> frozenset[str]:
    """Half of all, of an odd number the smaller half, wherever they lie."""
    return _drawn({name: [name] for name in sorted(names)}, seed, "tensors")


def _drawn(groups: Mapping[str, list[str]], seed: int, what: str) -> frozenset[str]:
    found = list(groups.values())
    order = Stream.of(seed, what).permutation(len(found))
    return frozenset(name for index in order[: len(found) // 2] for name in found[index])


def _by_module(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[name.rpartition(".")[0]].append(name)
    return found


def _place(module: str) -> tuple[Block, str] | None:
    """The block that a module lies in and its category there; None outside the blocks."""
    found = re.match(r"(.*?\.)(\d+)\.(.+)$", module)
    if found is None:
        return None
    inside = found[3]
    is_norm = re.search(r"(norm|ln_\d|ln)$", inside, re.I) is not None
    return (found[1], int(found[2])), "norm" if is_norm else inside.partition(".")[0]
