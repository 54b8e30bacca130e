"""reft: h + Rᵀ(W h + b − R h) on the outputs of some modules, everywhere or at the ends of the prompt.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It acts at run time alone: `runtime/reft.py`.

Source: arXiv:2404.03592 eq. 2.
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import REFT

SPEC = runtime_kind(
    REFT,
    title="LoReFT",
    summary="A low-rank edit of hidden states at chosen positions",
    source="arXiv:2404.03592 eq. 2",
)
