"""bottleneck: y + s · up(f(down(x))) on some modules, x their output, or their input where it is parallel.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It acts at run time alone: `runtime/bottleneck.py`.

Source: arXiv:1902.00751, arXiv:2110.04366.
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import BOTTLENECK

SPEC = runtime_kind(
    BOTTLENECK,
    title="Bottleneck",
    summary="A small two-layer network after or beside some modules",
    source="arXiv:1902.00751, arXiv:2110.04366",
)
