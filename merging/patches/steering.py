"""steering: h + k · s · v on the outputs of some modules, s its strength and k the weight.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It acts at run time alone: `runtime/steering.py`.

Source: arXiv:2308.10248, arXiv:2312.06681 (CAA).
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import STEERING

SPEC = runtime_kind(
    STEERING,
    title="Steering vector",
    summary="A vector added to the hidden states that some modules give",
    source="arXiv:2308.10248, arXiv:2312.06681 (CAA)",
)
