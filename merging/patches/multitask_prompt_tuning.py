"""multitask_prompt_tuning: a shared prompt P, and for task k the prompt P ∘ (u_k v_kᵀ); calls name tasks by task_ids.

Files: `adapter_config.json` and `adapter_model.safetensors`; `prompts.py` has keys, shapes and rules. It acts at run
time alone: `runtime/multitask_prompt_tuning.py`.

Source: arXiv:2303.02861 sec. 3.1, as peft saves it.
"""

from adapterhub.merging.peft_adapter import peft_kind
from adapterhub.merging.prompts import MULTITASK

SPEC = peft_kind(
    MULTITASK,
    name="multitask_prompt_tuning",
    title="Multitask prompt tuning",
    summary="A shared prompt, scaled for each task by columns times rows",
    source="arXiv:2303.02861 sec. 3.1, as peft saves it",
)
