"""Tuners that peft itself runs on a live model: its layers take the places of the model's, until the snapshot is back.

The configuration is rebuilt from allow-listed fields; nothing is fetched, and the random numbers that peft draws for
layers it then fills leave the generator as it was. Imports torch and peft inside functions only.
Source: peft 0.21 `peft_model.py` (from_pretrained), `utils/save_and_load.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.errors import InvalidPatch, NotFoldable, UnknownSite
from adapterhub.merging.folders import join
from adapterhub.merging.live import by_name, check_shape, check_weight, model_name, override, tensor
from adapterhub.merging.peft_adapter import WEIGHTS, Adapter, Tuner, checked


def attach_tuner(
    kind: str, tuner: Tuner, settings: Callable[[Adapter], Mapping[str, Any]], *, wraps_calls: bool = False
) -> Callable[[Any, Folder, str, float], Callable[[], None]]:
    """How a kind that peft runs goes on a live model.

    settings: the fields of peft's configuration, from an adapter that was checked. wraps_calls: whether peft's model
    has to be what is called, and not only its layers.
    """

    def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
        adapter = checked(folder, path, tuner)
        check_weight(kind, weight)
        stored, _ = open_tensors(folder, join(path, WEIGHTS), limit_bytes=PATCH_HEADER_BYTES)
        fields = {**settings(adapter), "task_type": _task(adapter.config), "inference_mode": True}

        def put() -> None:
            adapted = _adapted(model, tuner.peft_type, fields, stored)
            if wraps_calls:
                through = _Through(adapted)
                override(model, "forward", through.forward)
                override(model, "generate", through.generate)

        return live.attach(model, kind, put)

    return attach


def _task(config: Mapping[str, Any]) -> str | None:
    """The task, of those that peft knows."""
    from peft import TaskType

    return config.get("task_type") if config.get("task_type") in set(TaskType) else None


def _adapted(model: Any, peft_type: str, fields: Mapping[str, Any], stored: Mapping[str, TensorHandle]) -> Any:
    """peft's model around `model`, whose layers it changes. Raises InvalidPatch, ShapeMismatch or NotFoldable."""
    import torch
    from peft import PeftModel, PeftType, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)](**fields)
            adapted: Any = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(fields["task_type"], PeftModel)(model, config)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise NotFoldable(f"{model_name(model)}: peft does not put a {peft_type} on it: {error}") from error
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        _check_names(model, wanted, stored)
        for name, own in wanted.items():
            check_shape(model, name, stored[name].shape, own.shape)
        set_peft_model_state_dict(adapted, {name: tensor(one) for name, one in stored.items()})
    return adapted.eval()


def _check_names(model: Any, wanted: Mapping[str, Any], stored: Mapping[str, TensorHandle]) -> None:
    strays, missing = sorted(stored.keys() - wanted.keys()), sorted(wanted.keys() - stored.keys())
    if strays:
        raise UnknownSite(strays[0], model_name(model))
    if missing:
        raise InvalidPatch(f"{WEIGHTS}: has no {missing[0]}, which this adapter needs on {model_name(model)}")


class _Through:
    """Sends calls of the model through peft's model, which calls the model in turn."""

    def __init__(self, adapted: Any) -> None:
        self.adapted, self.is_inside = adapted, False

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._sent(self.adapted.forward, original, args, kwargs)

    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._sent(self.adapted.generate, original, args, kwargs)

    def _sent(
        self, other: Callable[..., Any], original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if self.is_inside:
            return original(*args, **kwargs)
        self.is_inside = True
        try:
            return other(**by_name(original, args, kwargs))
        finally:
            self.is_inside = False
