"""lily: low-rank factors A, and experts B mixed by a router, as peft's LILY saves them.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/lily.py`.

Source: arXiv:2407.09946, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import LILY

SPEC = peft_kind(
    LILY,
    name="lily",
    title="Lily",
    summary="Low-rank factors shared between layers, mixed by a router over the sequence",
    source="arXiv:2407.09946, as peft saves it",
)
