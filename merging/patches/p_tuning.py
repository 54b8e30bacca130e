"""p_tuning: a prompt that an encoder made; peft saves what the encoder gave, so it runs as a plain prompt.

Files: `adapter_config.json` and `adapter_model.safetensors`; `prompts.py` has keys, shapes and rules. It acts at run
time alone: `runtime/p_tuning.py`.

Source: arXiv:2103.10385, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.prompts import P_TUNING

SPEC = peft_kind(
    P_TUNING,
    name="p_tuning",
    title="P-tuning",
    summary="Vectors made by an encoder, before the embedded tokens",
    source="arXiv:2103.10385, as peft saves it",
)
