"""What a model in memory calls the tensors of its weight files."""

from collections.abc import Iterator
from typing import Any

from adapterhub.merging.sites import live_name


def candidates(model: Any, name: str) -> Iterator[str]:
    """The names that a stored tensor may have in a transformers model, the likeliest first.

    In files the prefix of the model in a head may be missing, and modules may have names that loading changes.
    """
    prefix = f"{model.base_model_prefix}."
    live = live_name(name, getattr(model.config, "model_type", None))
    yield from (name, prefix + name, name.removeprefix(prefix), live, prefix + live, live.removeprefix(prefix))
