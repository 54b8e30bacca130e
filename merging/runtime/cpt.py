"""cpt: a prompt that began as the embedded tokens of examples, as peft's CPT saves it.

A weight other than 1 is refused. Source: arXiv:2410.17222, as peft saves it.
"""

from adapterhub.merging.live_prompts import attach_prompt
from adapterhub.merging.prompts import CPT
from adapterhub.merging.registry import RuntimeSpec

SPEC = RuntimeSpec(
    name="cpt",
    summary="Vectors that began as the tokens of examples, before the embedded tokens",
    source="arXiv:2410.17222, as peft saves it",
    attach=attach_prompt("cpt", CPT),
)
