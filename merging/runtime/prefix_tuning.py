"""prefix_tuning: keys and values before those of the tokens in every layer, as peft's PREFIX_TUNING saves them.

A weight other than 1 is refused. Source: arXiv:2101.00190, as peft saves it.
"""

from adapterhub.merging.live_prompts import attach_prompt
from adapterhub.merging.prompts import PREFIX
from adapterhub.merging.registry import RuntimeSpec

SPEC = RuntimeSpec(
    name="prefix_tuning",
    summary="Keys and values at the beginning of the cache of every layer",
    source="arXiv:2101.00190, as peft saves it",
    attach=attach_prompt("prefix_tuning", PREFIX),
)
