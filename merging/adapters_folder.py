"""Folders of the library `adapters` (AdapterHub): configuration, names of tensors, heads; for kinds that read them.

Files: `adapter_config.json` without peft_type, with `config` and `version`; `adapter.safetensors`; with a head
`head_config.json` and `model_head.safetensors`. The adapter's name is a part of every tensor's name. Never imports
torch. Source: adapters 1.3.0 `loading.py`, `methods/modeling.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterhub.merging.checkpoint import Folder, TensorHandle, open_tensors
from adapterhub.merging.container import PATCH_HEADER_BYTES
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import join, json_digest, read_json
from adapterhub.merging.patch import TrainingBase
from adapterhub.merging.peft_adapter import DTYPES

CONFIG = "adapter_config.json"
WEIGHTS = "adapter.safetensors"
HEAD_CONFIG = "head_config.json"
HEAD_WEIGHTS = "model_head.safetensors"
PICKLES = ("pytorch_adapter.bin", "pytorch_model_head.bin")

BOTTLENECK = "bottleneck"
"""Architecture of configurations that name none: Houlsby, Pfeiffer, parallel, compacter, invertible."""

_UNHASHED = {"name", "model_name", "version"}


@dataclass(frozen=True)
class AdaptersFolder:
    """One adapter, read as far as headers go.

    config: its `config` object. whole: all of adapter_config.json. modules: tensors by what stands before
    `.adapters.<name>.`, and by the rest. invertible: of the coupling block after the embeddings. shared: of all.
    others: tensors of other methods, by their full names. head: the model's, by their names there, and its labels.
    """

    path: str
    whole: Mapping[str, Any]
    config: Mapping[str, Any]
    modules: Mapping[str, Mapping[str, TensorHandle]] = field(default_factory=dict)
    invertible: Mapping[str, TensorHandle] = field(default_factory=dict)
    shared: Mapping[str, TensorHandle] = field(default_factory=dict)
    others: Mapping[str, TensorHandle] = field(default_factory=dict)
    head: Mapping[str, TensorHandle] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return architecture_of(self.whole)

    @property
    def handles(self) -> list[TensorHandle]:
        """All tensors, the head's among them."""
        parts = [self.invertible, self.shared, self.others, self.head, *self.modules.values()]
        return [handle for part in parts for handle in part.values()]


def read_adapters_config(folder: Folder, path: str) -> dict[str, Any] | None:
    """adapter_config.json in `path` if it is of this library; None where there is none, or peft's."""
    file = join(path, CONFIG)
    if file not in folder.names():
        return None
    try:
        found = read_json(folder, file)
    except InvalidPatch:
        return None
    is_ours = "peft_type" not in found and isinstance(found.get("config"), dict)
    return found if is_ours and ("version" in found or "model_type" in found) else None


def architecture_of(whole: Mapping[str, Any]) -> str:
    """Which method it is: "bottleneck", "lora", "prefix_tuning", "reft", "union", ..."""
    return str(whole["config"].get("architecture") or BOTTLENECK)


def training_base_of(whole: Mapping[str, Any]) -> TrainingBase:
    """The base that adapter_config.json names."""
    name = whole.get("model_name")
    return TrainingBase(name=name if isinstance(name, str) and name else None)


def digest_of(folder: Folder, found: AdaptersFolder, kind: str) -> str:
    """Over kind, configuration, weights and head; the adapter's own name does not count."""
    counted = {key: value for key, value in found.whole.items() if key not in _UNHASHED}
    files = [join(found.path, WEIGHTS), *([join(found.path, HEAD_WEIGHTS)] if found.head else [])]
    return json_digest({"kind": kind, "config": counted, "weights": [folder.digest(one) for one in files]})


def open_adapters(folder: Folder, path: str) -> AdaptersFolder:
    """The adapter in `path`, headers read. Raises InvalidPatch or BrokenContainer."""
    whole = read_adapters_config(folder, path)
    if whole is None:
        raise InvalidPatch(f"{join(path, CONFIG)}: missing, or not of the library adapters")
    tensors = _tensors(folder, join(path, WEIGHTS), PICKLES[0])
    name = str(whole.get("name"))
    modules: dict[str, dict[str, TensorHandle]] = {}
    invertible: dict[str, TensorHandle] = {}
    shared: dict[str, TensorHandle] = {}
    others: dict[str, TensorHandle] = {}
    for key, handle in tensors.items():
        if handle.dtype not in DTYPES:
            raise InvalidPatch(
                f"{join(path, WEIGHTS)}: tensor {key[:200]} has dtype {handle.dtype}; a float is expected"
            )
        for mark, place in ((f"invertible_adapters.{name}.", invertible), (f"shared_parameters.{name}.", shared)):
            if mark in key:
                place[key.partition(mark)[2]] = handle
                break
        else:
            module, mark, leaf = key.partition(f".adapters.{name}.")
            if mark:
                modules.setdefault(module, {})[leaf] = handle
            else:
                others[key] = handle
    has_head = join(path, HEAD_CONFIG) in folder.names()
    head = _tensors(folder, join(path, HEAD_WEIGHTS), PICKLES[1]) if has_head else {}
    labels = _labels(read_json(folder, join(path, HEAD_CONFIG)), join(path, HEAD_CONFIG)) if has_head else {}
    return AdaptersFolder(path, whole, whole["config"], modules, invertible, shared, others, head, labels)


def _tensors(folder: Folder, file: str, pickled: str) -> dict[str, TensorHandle]:
    if file in folder.names():
        return open_tensors(folder, file, limit_bytes=PATCH_HEADER_BYTES)[0]
    pickled = join(file.rpartition("/")[0], pickled)
    hint = f"; {pickled} is a pickle and never opened, save with use_safetensors" if pickled in folder.names() else ""
    raise InvalidPatch(f"{file}: missing{hint}")


def _labels(head: Mapping[str, Any], file: str) -> Mapping[str, int]:
    labels = head.get("label2id") or (head.get("config") or {}).get("label2id") or {}
    if not isinstance(labels, dict) or not all(type(number) is int for number in labels.values()):
        raise InvalidPatch(f"{file}: label2id is {str(labels)[:80]}; an object of numbers is expected")
    return labels
