"""prompt_tuning: a prompt of trained vectors (n, d) before the embedded tokens, as peft's PROMPT_TUNING saves it.

A weight other than 1 is refused. Source: arXiv:2104.08691, as peft saves it.
"""

from adapterhub.merging.live_prompts import attach_prompt
from adapterhub.merging.prompts import PROMPT_TUNING
from adapterhub.merging.registry import RuntimeSpec

SPEC = RuntimeSpec(
    name="prompt_tuning",
    summary="Vectors that come before the embedded tokens",
    source="arXiv:2104.08691, as peft saves it",
    attach=attach_prompt("prompt_tuning", PROMPT_TUNING),
)
