"""cartridge: a trained cache of keys and values in the place of a long text's, as peft's CARTRIDGE saves it.

Files: `adapter_config.json` and `adapter_model.safetensors`; `prompts.py` has keys, shapes and rules. It acts at run
time alone: `runtime/cartridge.py`.

Source: arXiv:2506.06266, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.prompts import CARTRIDGE

SPEC = peft_kind(
    CARTRIDGE,
    name="cartridge",
    title="Cartridge",
    summary="A trained cache of keys and values that stands for a long text",
    source="arXiv:2506.06266, as peft saves it",
)
