"""poly: an inventory of low-rank skills and for each task a mixture of them, as peft's POLY saves it.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/poly.py`.

Source: arXiv:2202.13914, arXiv:2211.03831, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import POLY

SPEC = peft_kind(
    POLY,
    name="poly",
    title="Poly",
    summary="Low-rank skills, mixed for each task by a trained table",
    source="arXiv:2202.13914, arXiv:2211.03831, as peft saves it",
)
