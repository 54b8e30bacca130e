"""model: the full weights of a model, in one safetensors file or in shards with their index.

Files: `config.json` beside `model.safetensors` or `model.safetensors.index.json`, as `save_pretrained` of transformers
writes them. As a patch, every parameter replaces the base's.
"""

from collections import Counter
from typing import Any

from adapterhub.merging.checkpoint import Checkpoint, Folder, check_fits, find_weights
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.extended_checkpoints import format_of
from adapterhub.merging.folders import join, json_digest, read_json
from adapterhub.merging.patch import Facts, Patch, PatchKind, SiteTerm, TrainingBase
from adapterhub.merging.quantised import dequantised, quantisation_of
from adapterhub.merging.sites import layers_of, targets_of

_SHOWN = ("architectures", "model_type", "hidden_size", "num_hidden_layers", "vocab_size", "torch_dtype", "dtype")
"""Keys of config.json that are shown as they are."""

_CODE = ("auto_map", "custom_pipelines", "trust_remote_code", "_attn_implementation_internal")
"""Keys of config.json that ask a loader to run code of the repository."""


def recognise(folder: Folder, path: str) -> Facts | None:
    """Facts of a model: a config.json with `model_type`, `architectures` or diffusers' `_class_name`, and weights."""
    config_name, weights = join(path, "config.json"), find_weights(folder, path)
    if config_name not in folder.names() or weights is None:
        return None
    try:
        config = read_json(folder, config_name)
    except InvalidPatch:
        return None
    said = next((key for key in ("model_type", "architectures", "_class_name") if config.get(key)), None)
    if said is None:
        return None
    named = "model type" if said == "model_type" else said
    reason = f"{config_name} names {named} {str(config[said])[:100]!r}, and {weights} lies beside it"
    try:
        model = Checkpoint.open(folder, path)
    except InvalidPatch as error:
        return Facts("model", reason, path, (config_name, weights), "replace", problems=(str(error),))
    return _facts(folder, path, reason, config, model)


def _facts(folder: Folder, path: str, reason: str, config: dict[str, Any], model: Checkpoint) -> Facts:
    dtypes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        dtypes[tensor.dtype] += tensor.numel
    trained = format_of(model.tensors)
    told = f"{model.files[0]}: holds what {trained} trained beside the model, which transformers would leave out; "
    cure = "`adapterhub patch convert --to native` makes a patch of it for the model it was trained on"
    return Facts(
        kind="model",
        reason=reason,
        path=path,
        problems=(told + cure,) if trained else (),
        files=(join(path, "config.json"), *model.files),
        effect="replace",
        base=TrainingBase(quantisation=quantisation_of(config)),
        targets=targets_of(model.tensors),
        layers=layers_of(model.tensors),
        parameter_count=sum(dtypes.values()),
        dtypes=dict(dtypes),
        size_bytes=sum(folder.size(name) for name in model.files),
        detail={key: config[key] for key in _SHOWN if key in config}
        | {"asks_for_code": [key for key in _CODE if config.get(key)], "quantisation": quantisation_of(config)},
    )


def read(folder: Folder, path: str, base: Checkpoint | None) -> Patch:
    """The model as a patch that replaces every parameter. Raises UnknownSite or ShapeMismatch where it does not fit."""
    facts = recognise(folder, path)
    if facts is None:
        raise InvalidPatch(f"{path or '.'}: no config.json with weights beside it")
    if facts.problems:
        raise InvalidPatch(facts.problems[0])
    stored = Checkpoint.open(folder, path)
    model = dequantised(stored)
    if base is not None:
        check_fits(model, base)
    digest = json_digest(
        {"kind": "model", "config": stored.config, "files": [folder.digest(one) for one in stored.files]}
    )
    return Patch(facts, digest, tuple(SiteTerm(name, "replace", {"value": one}) for name, one in model.tensors.items()))


SPEC = PatchKind(
    name="model",
    title="Full model",
    summary="All weights of a model",
    source="transformers save_pretrained",
    recognise=recognise,
    read=read,
    family="transformers",
)
