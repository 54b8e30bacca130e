"""conditional_norm: γ(s) ⊙ x̂ + β(s) in some layer norms, γ and β linear in the embedding of speaker s.

Source: arXiv:2103.00993 sec. 2.3 (AdaSpeech).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import InvalidParameter, NotFoldable
from adapterhub.merging.live import check_shape, check_weight, hook_output, module_at, override, tensor
from adapterhub.merging.native_runtime import read_runtime
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.representations import CONDITIONAL_NORM

if TYPE_CHECKING:
    import torch


def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
    from torch.nn import LayerNorm

    patch = read_runtime(folder, path, CONDITIONAL_NORM)
    check_weight("conditional_norm", weight)
    for name, fields in patch.modules.items():
        module = module_at(model, name)
        if not isinstance(module, LayerNorm):
            raise NotFoldable(
                f"{name}: is a {type(module).__name__}; a conditional norm takes the place of a LayerNorm"
            )
        check_shape(model, name, fields["scale.weight"].shape[:1], module.normalized_shape)
    count = patch.shared["embeddings"].shape[0]

    def put() -> None:
        call: dict[str, Any] = {"speakers": None}
        if count > 1:
            _watch(model, call)
        embeddings = tensor(patch.shared["embeddings"], next(model.parameters()))
        for name, fields in patch.modules.items():
            module = module_at(model, name)
            values = {field: tensor(handle, embeddings) for field, handle in fields.items()}
            hook_output(module, _hook(values, embeddings, call))

    return live.attach(model, "conditional_norm", put)


def _hook(values: Mapping[str, torch.Tensor], embeddings: torch.Tensor, call: Mapping[str, Any]) -> Callable[..., Any]:
    """γ ⊙ x̂ + β; x̂ is normalised as the module does it, whose own scale and bias are left out."""
    from torch.nn.functional import layer_norm, linear

    def hook(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        if len(embeddings) > 1 and call["speakers"] is None:
            raise InvalidParameter("this patch has a voice for each speaker: speaker_ids, one a row, must be given")
        chosen = embeddings if len(embeddings) == 1 else embeddings[call["speakers"]]  # (batch or 1, e)
        scale, shift = (
            linear(chosen, values[f"{name}.weight"], values.get(f"{name}.bias"))[:, None] for name in ("scale", "shift")
        )
        normal = layer_norm(args[0].to(scale.dtype), module.normalized_shape, eps=module.eps)
        return (scale * normal + shift).to(output.dtype)

    return hook


def _watch(model: Any, call: dict[str, Any]) -> None:
    def named(original: Callable[..., Any], *args: Any, speaker_ids: Any = None, **kwargs: Any) -> Any:
        if speaker_ids is None:  # of a call inside generate, which knows the speakers
            return original(*args, **kwargs)
        before, call["speakers"] = call["speakers"], speaker_ids
        try:
            return original(*args, **kwargs)
        finally:
            call["speakers"] = before

    for method in ("forward", "generate") if model.can_generate() else ("forward",):
        override(model, method, named, extra=("speaker_ids",))


SPEC = RuntimeSpec(
    name="conditional_norm",
    summary="Scale and bias of layer norms made from an embedding of the speaker",
    source="arXiv:2103.00993 sec. 2.3 (AdaSpeech)",
    attach=attach,
)
