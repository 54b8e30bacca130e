"""The headers of all shards of a model, as the files have them."""

import json
from dataclasses import dataclass
from typing import Any

from adapterhub.hub.errors import InvalidRequest, TooLarge
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import Folder, read_json

SHARDS = 1000
HEADERS_BYTES = 64 << 20
"""Most bytes of headers that one answer holds."""


@dataclass(frozen=True)
class ShardHeaders:
    """metadata: of the index. headers: the JSON of each shard's header, by the shard's name; checked when it came."""

    metadata: Any
    headers: dict[str, bytes]


def read_shard_headers(folder: Folder, index: str) -> ShardHeaders:
    """The header of every shard that the index at the path `index` names.

    folder: of the commit, `index` in it. Raises InvalidRequest where that is no index or names a shard that is not
    there, TooLarge.
    """
    try:
        written = read_json(folder, index)
    except InvalidPatch as error:
        raise InvalidRequest(str(error)) from None
    weight_map = written.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InvalidRequest(f"{index}: no index of shards: it has no weight_map of tensors to files")
    shards = sorted(set(weight_map.values()))
    if len(shards) > SHARDS:
        raise TooLarge(f"{index}: {len(shards)} shards, at most {SHARDS} are read at once")
    prefix = index.rpartition("/")[0]
    headers: dict[str, bytes] = {}
    for shard in shards:
        path = f"{prefix}/{shard}" if prefix else shard
        if not path.endswith(".safetensors") or path not in folder.names():
            raise InvalidRequest(f"{index}: the shard {shard[:100]!r} is not in the repository")
        length = int.from_bytes(folder.read(path, 0, 8), "little")
        if sum(map(len, headers.values())) + length > HEADERS_BYTES:
            raise TooLarge(f"{index}: the headers of its shards have more than {HEADERS_BYTES} bytes")
        headers[shard] = folder.read(path, 8, 8 + length)
    return ShardHeaders(written.get("metadata"), headers)


def as_json(found: ShardHeaders) -> bytes:
    """The same as one JSON object; the headers are taken over as they are written."""
    headers = b",".join(json.dumps(name).encode() + b":" + header for name, header in found.headers.items())
    index = json.dumps({"metadata": found.metadata}).encode()
    return b'{"index":' + index + b',"headers":{' + headers + b"}}"
