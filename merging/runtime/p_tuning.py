"""p_tuning: a prompt that an encoder made; peft saves what the encoder gave, so it runs as a plain prompt.

A weight other than 1 is refused. Source: arXiv:2103.10385, as peft saves it.
"""

from adapterhub.merging.live_prompts import attach_prompt
from adapterhub.merging.prompts import P_TUNING
from adapterhub.merging.registry import RuntimeSpec

SPEC = RuntimeSpec(
    name="p_tuning",
    summary="Vectors made by an encoder, before the embedded tokens",
    source="arXiv:2103.10385, as peft saves it",
    attach=attach_prompt("p_tuning", P_TUNING),
)
