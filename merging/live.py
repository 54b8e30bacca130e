"""Patches on a live transformers model: put on, and taken off without a trace.

What a patch changes is undone from a snapshot of the module tree, not by reversing its steps: every module's own
attributes, children, parameters, buffers and hooks, each parameter's requires_grad, and the configurations. Values of
tensors are not copied: nothing here writes to them.

Patches lie on one another like plates. One that is not on top is taken off by lifting those above it, which go back
in their order. Imports torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from adapterhub.merging.checkpoint import TensorHandle
from adapterhub.merging.errors import NotFoldable, ShapeMismatch, UnknownSite
from adapterhub.merging.ops.tensors import from_bytes
from adapterhub.merging.stacking import check_stack

if TYPE_CHECKING:
    import torch


@dataclass
class _Plate:
    """One attached patch. kind: the patch kind's name. put: changes the model. before: what it looked like."""

    kind: str
    put: Callable[[], None]
    before: Snapshot


_STACKS: WeakKeyDictionary[Any, list[_Plate]] = WeakKeyDictionary()
"""The patches on each model, the lowest first; kept here, so that the model itself carries no mark of them."""


def attach(model: Any, kind: str, put: Callable[[], None]) -> Callable[[], None]:
    """Run `put`, which changes `model`, and give the function that takes the change off again.

    Patches may come off in any order; a second call of the given function does nothing. A `put` that raises leaves the
    model as it was. Raises NotStackable where the kind does not go on top of those already attached.
    """
    stack = _STACKS.setdefault(model, [])
    check_stack([one.kind for one in stack], kind)
    plate = _Plate(kind, put, Snapshot(model))
    _put(plate)
    stack.append(plate)
    return lambda: _take_off(model, plate)


def attached(model: Any) -> Sequence[str]:
    """The kinds of the patches on a model, the lowest first."""
    return [one.kind for one in _STACKS.get(model, ())]


def _put(plate: _Plate) -> None:
    try:
        plate.put()
    except BaseException:
        plate.before.restore()
        raise


def _take_off(model: Any, plate: _Plate) -> None:
    stack = _STACKS.get(model, [])
    place = next((number for number, one in enumerate(stack) if one is plate), None)
    if place is None:
        return
    above = stack[place + 1 :]
    plate.before.restore()
    del stack[place:]
    for one in above:
        one.before = Snapshot(model)
        _put(one)
        stack.append(one)
    if not stack:
        del _STACKS[model]


class Snapshot:
    """What a model is made of, as it was when this was made; tensors by reference."""

    def __init__(self, model: Any) -> None:
        self._objects = [*model.modules(), *_configurations(model)]
        self._attributes = [dict(vars(one)) for one in self._objects]
        self._containers = [
            (container, type(container)(container))
            for attributes in self._attributes
            for container in attributes.values()
            if isinstance(container, dict | set)
        ]
        self._flags = [(one, one.requires_grad) for one in model.parameters()]

    def restore(self) -> None:
        """Make the model so again: the same objects in the same places and order."""
        for one, attributes in zip(self._objects, self._attributes, strict=True):
            vars(one).clear()
            vars(one).update(attributes)
        for container, content in self._containers:
            container.clear()
            container.update(content)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


def _configurations(model: Any) -> list[Any]:
    found = (getattr(model, name, None) for name in ("config", "generation_config"))
    return [one for one in found if one is not None and hasattr(one, "__dict__")]


# ---- calls -----------------------------------------------------------------------------------------------------------


def override(module: Any, method: str, call: Callable[..., Any], *, extra: Sequence[str] = ()) -> None:
    """Let `module.method(...)` be `call(original, ...)`.

    extra: keyword arguments that it takes beside the original's; transformers' generate asks for the signature.
    """
    original = getattr(module, method)

    @wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    if extra:
        called.__signature__ = _extended(signature(original), extra)  # type: ignore[attr-defined]
    setattr(module, method, called)


def hook_output(module: Any, hook: Callable[..., Any]) -> None:
    """Let `hook(module, args, kwargs, output)` give another output, after other patches and before everybody else.

    transformers keeps the hidden states it is asked for by hooks that it sets once and for all: they must see the
    patched ones, whichever came first.
    """

    def patching(*given: Any) -> Any:
        return hook(*given)

    patching.is_patch = True  # type: ignore[attr-defined]
    module.register_forward_hook(patching, with_kwargs=True)
    others = [key for key, one in module._forward_hooks.items() if not getattr(one, "is_patch", False)]
    for key in others:
        module._forward_hooks.move_to_end(key)


def _extended(found: Signature, extra: Sequence[str]) -> Signature:
    named = [one for one in found.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    rest = [one for one in found.parameters.values() if one.kind is Parameter.VAR_KEYWORD]
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in extra if name not in found.parameters]
    return found.replace(parameters=[*named, *added, *rest])


def by_name(method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name; those given by place have the names that the signature gives them."""
    names = [one.name for one in signature(method).parameters.values() if one.kind is Parameter.POSITIONAL_OR_KEYWORD]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def cache_of(given: Mapping[str, Any]) -> Any:
    """The cache that a call was given, under the name of newer transformers or of older ones; None for none."""
    cache = given.get("cache")
    return given.get("past_key_values") if cache is None else cache


def is_cached(given: Mapping[str, Any]) -> bool:
    """Whether a call goes on from tokens that are in its cache."""
    cache = cache_of(given)
    return cache is not None and cache.get_seq_length() > 0


# ---- tensors and modules ---------------------------------------------------------------------------------------------


def tensor(handle: TensorHandle, like: torch.Tensor | None = None) -> torch.Tensor:
    """The values of a handle, in its own dtype; on the device of `like`."""
    found = from_bytes(handle.read(), handle.dtype, handle.shape)
    return found if like is None else found.to(like.device)


def module_at(model: Any, path: str) -> Any:
    """The module of that path below the model, or below its backbone. Raises UnknownSite."""
    modules = dict(model.named_modules())
    backbone = getattr(model, "base_model_prefix", "")
    for name in (path, f"{backbone}.{path}", path.removeprefix(f"{backbone}.")):
        if name in modules and name:
            return modules[name]
    raise UnknownSite(path, model_name(model))


def check_parameters(model: Any, values: Mapping[str, TensorHandle]) -> None:
    """Raises UnknownSite or ShapeMismatch unless the model has parameters of these names and shapes."""
    for name, handle in values.items():
        path, _, leaf = name.rpartition(".")
        found = dict(module_at(model, path).named_parameters(recurse=False)).get(leaf)
        if found is None:
            raise UnknownSite(name, model_name(model))
        check_shape(model, name, handle.shape, found.shape)


def put_parameters(model: Any, values: Mapping[str, TensorHandle]) -> None:
    """Let parameters have other values, in the dtype they had: new tensors in the place of the old ones."""
    from torch.nn import Parameter as Weights

    check_parameters(model, values)
    for name, handle in values.items():
        path, _, leaf = name.rpartition(".")
        module = module_at(model, path)
        old = getattr(module, leaf)
        setattr(module, leaf, Weights(tensor(handle, old).to(old.dtype), requires_grad=False))


def model_name(model: Any) -> str:
    """How messages call a live model."""
    return getattr(model, "name_or_path", "") or type(model).__name__


def check_shape(model: Any, site: str, found: Sequence[int], expected: Sequence[int]) -> None:
    """Raises ShapeMismatch unless the two are equal."""
    if tuple(found) != tuple(expected):
        raise ShapeMismatch(site, found, model_name(model), expected)


def check_weight(kind: str, weight: float) -> None:
    """Raises NotFoldable for a weight other than 1, where the kind has none."""
    if weight != 1.0:
        raise NotFoldable(f"{kind}: weight {weight:g}; it has no strength to scale, so 1 alone is accepted")


def hidden_size(model: Any) -> int:
    """Width of the model's hidden states."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(next(getattr(config, name) for name in ("hidden_size", "d_model", "n_embd") if hasattr(config, name)))
