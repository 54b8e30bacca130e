"""prompt_tuning: a prompt of trained vectors (n, d) before the embedded tokens, as peft's PROMPT_TUNING saves it.

Files: `adapter_config.json` and `adapter_model.safetensors`; `prompts.py` has keys, shapes and rules. It acts at run
time alone: `runtime/prompt_tuning.py`.

Source: arXiv:2104.08691, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.prompts import PROMPT_TUNING

SPEC = peft_kind(
    PROMPT_TUNING,
    name="prompt_tuning",
    title="Prompt tuning",
    summary="Vectors that come before the embedded tokens",
    source="arXiv:2104.08691, as peft saves it",
)
