"""signs: one sign an entry and one scale a tensor, row or group, as BitDelta compresses a fine-tune.

Files: `patch.json` of kind "signs" and `patch.safetensors`, the native format of `native.py`.
Source: arXiv:2402.10193 (BitDelta).
"""

from adapterhub.merging.native import native_kind

SPEC = native_kind(
    "signs",
    title="BitDelta",
    summary="One sign an entry and one scale a tensor, row or group",
    source="arXiv:2402.10193 (BitDelta)",
)
