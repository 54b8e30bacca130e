"""shadow: a small network that runs beside a decoder, corrects the input of each block and follows its output.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/shadow.py`.

Source: peft 0.21 tuners/shadow.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import SHADOW

SPEC = peft_kind(
    SHADOW,
    name="shadow",
    title="Shadow",
    summary="A small network beside the decoder, whose state corrects and follows each block",
    source="peft 0.21 tuners/shadow",
)
