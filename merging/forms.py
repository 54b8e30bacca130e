"""To which forms a kind of patch converts: told of each kind once, by what it declares. Never imports torch."""

from collections.abc import Sequence

from adapterhub.merging import patches
from adapterhub.merging.patch import PatchKind

DENSE = "dense"
"""The form of all that folds: a native patch that adds a whole delta to each parameter."""

_APART = ({"diffusion", "llama.cpp"},)
"""Families of formats for bases of which none has both."""


def written() -> Sequence[str]:
    """The kinds that low-rank patches are written as."""
    return [name for name, kind in patches.kinds().items() if kind.export is not None]


def forms() -> Sequence[str]:
    """All that a patch can be converted to."""
    return [*written(), DENSE]


def forms_of(kind: PatchKind) -> Sequence[str]:
    """What patches of this kind convert to: what holds low-rank terms, where they are such; dense, where they fold.

    One patch may still be refused, by the name of its parameter: whole modules and biases beside low-rank factors, DoRA
    in GGUF, tied embeddings.
    """
    names = written() if kind.has_factors else []
    fitting = [name for name in names if {kind.family, patches.kinds()[name].family} not in _APART]
    return [*fitting, *([DENSE] if kind.folds != "no" else [])]
