"""alora: a LoRA that acts on tokens from its last invocation on, as peft's LORA with alora_invocation_tokens saves it.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/alora.py`.

Source: arXiv:2504.12397, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import ALORA

SPEC = peft_kind(
    ALORA,
    name="alora",
    title="Activated LoRA",
    summary="A LoRA that acts from its invocation tokens on",
    source="arXiv:2504.12397, as peft saves it",
)
