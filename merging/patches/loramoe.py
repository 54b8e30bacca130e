"""loramoe: low-rank experts and a router over them at each token, as LoRAMoE's fork of peft saves them.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/loramoe.py`.

Source: arXiv:2312.09979; its fork of peft, tuners/lora.py.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import LORAMOE

SPEC = peft_kind(
    LORAMOE,
    name="loramoe",
    title="LoRAMoE",
    summary="Low-rank experts, mixed for each token by a router",
    source="arXiv:2312.09979; its fork of peft, tuners/lora.py",
)
