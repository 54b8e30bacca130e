"""adaption_prompt: attention of the upper layers to trained vectors, behind a gate that began at 0.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/adaption_prompt.py`.

Source: arXiv:2303.16199, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import ADAPTION_PROMPT

SPEC = peft_kind(
    ADAPTION_PROMPT,
    name="adaption_prompt",
    title="Adaption prompt",
    summary="Attention to trained vectors beside the tokens, behind a gate that began at 0",
    source="arXiv:2303.16199, as peft saves it",
)
