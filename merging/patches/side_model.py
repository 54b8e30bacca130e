"""side_model: a small task model beside its base, such as LEVI trains; described, and run by nothing here.

Files: `patch.json` with effect "runtime" and `patch.safetensors`; `representations.py` lists tensors and options.
It cannot be attached.

Source: arXiv:2310.08715 (LEVI).
"""

from adapterhub.merging.native_runtime import runtime_kind
from adapterhub.merging.representations import SIDE_MODEL

SPEC = runtime_kind(
    SIDE_MODEL,
    title="Side model",
    summary="A small task model that runs beside its base",
    source="arXiv:2310.08715 (LEVI)",
)
