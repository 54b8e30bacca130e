"""cpt: a prompt that began as the embedded tokens of examples, as peft's CPT saves it.

Files: `adapter_config.json` and `adapter_model.safetensors`; `prompts.py` has keys, shapes and rules. It acts at run
time alone: `runtime/cpt.py`.

Source: arXiv:2410.17222, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.prompts import CPT

SPEC = peft_kind(
    CPT,
    name="cpt",
    title="Context-aware prompt tuning",
    summary="Vectors that began as the tokens of examples, before the embedded tokens",
    source="arXiv:2410.17222, as peft saves it",
)
