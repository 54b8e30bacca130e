"""xlora: scales several LoRAs, by token and layer, by what a classifier says of the bare model's last hidden states.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/xlora.py`.

Source: arXiv:2402.07148, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import XLORA

SPEC = peft_kind(
    XLORA,
    name="xlora",
    title="X-LoRA",
    summary="Scales several LoRAs at each token and layer by a classifier of hidden states",
    source="arXiv:2402.07148, as peft saves it",
)
