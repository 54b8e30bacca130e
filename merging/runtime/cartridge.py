"""cartridge: a trained cache of keys and values in the place of a long text's, as peft's CARTRIDGE saves it.

A weight other than 1 is refused. Source: arXiv:2506.06266, as peft saves it.
"""

from adapterhub.merging.live_prompts import attach_prompt
from adapterhub.merging.prompts import CARTRIDGE
from adapterhub.merging.registry import RuntimeSpec

SPEC = RuntimeSpec(
    name="cartridge",
    summary="A trained cache of keys and values that stands for a long text",
    source="arXiv:2506.06266, as peft saves it",
    attach=attach_prompt("cartridge", CARTRIDGE),
)
