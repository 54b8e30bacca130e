"""arrow: routes each token to some of several LoRAs by the directions that they amplify most, without training.

Files: `adapter_config.json` and `adapter_model.safetensors`; `routed.py` has keys, shapes and rules. It acts at run
time alone: `runtime/arrow.py`.

Source: arXiv:2405.11157, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.routed import ARROW

SPEC = peft_kind(
    ARROW,
    name="arrow",
    title="Arrow",
    summary="Chooses for each token among LoRAs by the directions they amplify most",
    source="arXiv:2405.11157, as peft saves it",
)
