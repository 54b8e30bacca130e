"""multitask_prompt_tuning: a shared prompt P, and for task k the prompt P ∘ (u_k v_kᵀ); calls name tasks by task_ids.

A weight other than 1 is refused. Source: arXiv:2303.02861 sec. 3.1, as peft saves it.
"""

from adapterhub.merging.live_prompts import attach_prompt
from adapterhub.merging.prompts import MULTITASK
from adapterhub.merging.registry import RuntimeSpec

SPEC = RuntimeSpec(
    name="multitask_prompt_tuning",
    summary="A shared prompt, scaled for each task by columns times rows",
    source="arXiv:2303.02861 sec. 3.1, as peft saves it",
    attach=attach_prompt("multitask_prompt_tuning", MULTITASK),
)
