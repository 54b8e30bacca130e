"""hypernetwork: a network that makes the weights of patches or heads; described, and run by nothing here.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It cannot be attached.

Source: FM3.
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import HYPERNETWORK

SPEC = runtime_kind(
    HYPERNETWORK,
    title="Hypernetwork",
    summary="A network that makes the weights of others",
    source="FM3",
)
