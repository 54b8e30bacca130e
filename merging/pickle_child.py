"""The child that reads a pickle of tensors and writes them as safetensors; run by `pickles.py`, confined by `sandbox`.

torch.load(weights_only=True) builds tensors, numbers, texts and containers of them, and refuses all else. Files of
torch 1.6 and later are mapped; what an older torch wrote is read whole.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.merging import sandbox

if TYPE_CHECKING:
    import torch

TENSORS = "tensors.safetensors"
VALUES = "values.json"

_MOST_DEPTH = 8


def convert(request: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Writes the tensors of the pickle `request["path"]` to TENSORS, all other values to VALUES; gives their counts.

    Names are the keys of nested mappings and lists, joined with request["joint"]; a mapping's key may hold it too.
    request: path; joint; lists, whether a list of numbers is a tensor (I64 or F64) and a sparse tensor is three: size,
    coordinates and values. Raises ValueError for what a name
    cannot be made of, and for tensors that safetensors cannot hold.
    """
    import torch

    path = request["path"]
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in _leaves(found, "", request["joint"], bool(request["lists"]), 0):
        if name in tensors or name in values:
            raise ValueError(f"{name[:200]}: two values have this name")
        if isinstance(value, torch.Tensor):
            tensors[name] = _storable(name, value)
        else:
            values[name] = value
    if tensors:
        _write(tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(values))
    return {"tensors": len(tensors), "values": len(values)}


def _leaves(value: Any, name: str, joint: str, lists: bool, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    if depth > _MOST_DEPTH:
        raise ValueError(f"{name[:200]}: nested too deeply")
    if isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise ValueError(f"{name[:200]}: has a key of type {type(key).__name__}; texts are expected")
            yield from _leaves(one, f"{name}{joint}{key}" if depth else str(key), joint, lists, depth + 1)
    elif lists and isinstance(value, list | tuple) and value and all(type(one) in (int, float) for one in value):
        yield name, torch.tensor(value, dtype=torch.int64 if all(type(one) is int for one in value) else torch.float64)
    elif lists and isinstance(value, torch.Tensor) and value.layout is torch.sparse_coo:
        # positions are foreign: a tensor that only says that its positions are in range is checked by who reads them
        yield f"{name}{joint}size", torch.tensor(list(value.shape), dtype=torch.int64)
        yield f"{name}{joint}coordinates", value.detach()._indices()
        yield f"{name}{joint}values", value.detach()._values()
    elif isinstance(value, list | tuple | torch.Size):
        for number, one in enumerate(value):
            yield from _leaves(one, f"{name}{joint}{number}" if depth else str(number), joint, lists, depth + 1)
    elif isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        yield name, value
    else:
        raise ValueError(f"{name[:200]}: a {type(value).__name__}; tensors, numbers and texts are expected")


def _storable(name: str, value: torch.Tensor) -> torch.Tensor:
    import torch

    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise ValueError(f"{name[:200]}: a {value.layout} tensor of {value.dtype}; plain numbers are expected")
    return value


def _write(tensors: Mapping[str, torch.Tensor], target: Path) -> None:
    """One tensor after another, so that what is mapped is never copied whole."""
    from adapterhub.merging.checkpoint import SafetensorsWriter
    from adapterhub.merging.ops.tensors import dtype_name, to_bytes

    planned = {name: (dtype_name(value.dtype), tuple(value.shape)) for name, value in tensors.items()}
    with SafetensorsWriter(target, planned, {"format": "pt"}) as writer:
        for name in writer.layout.offsets:
            writer.write(name, to_bytes(tensors[name].contiguous()))
        writer.finish()


if __name__ == "__main__":
    sandbox.serve(convert)
