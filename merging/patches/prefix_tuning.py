"""prefix_tuning: keys and values before those of the tokens in every layer, as peft's PREFIX_TUNING saves them.

Files: `adapter_config.json` and `adapter_model.safetensors`; `prompts.py` has keys, shapes and rules. It acts at run
time alone: `runtime/prefix_tuning.py`.

Source: arXiv:2101.00190, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.prompts import PREFIX

SPEC = peft_kind(
    PREFIX,
    name="prefix_tuning",
    title="Prefix tuning",
    summary="Keys and values at the beginning of the cache of every layer",
    source="arXiv:2101.00190, as peft saves it",
)
