"""adaption_prompt: attention of the upper layers to trained vectors, behind a gate that began at 0.

peft itself runs it, on the live model. A weight other than 1 is refused. Source: arXiv:2303.16199, as peft saves it.
"""

from collections.abc import Mapping
from typing import Any

from adapterhub.merging.live_peft import attach_tuner
from adapterhub.merging.peft_adapter import Adapter
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import ADAPTION_PROMPT


def _settings(adapter: Adapter) -> Mapping[str, Any]:
    config = adapter.config
    return {name: config.get(name) for name in ("adapter_len", "adapter_layers", "target_modules")}


SPEC = RuntimeSpec(
    name="adaption_prompt",
    summary="Attention to trained vectors beside the tokens, behind a gate that began at 0",
    source="arXiv:2303.16199, as peft saves it",
    attach=attach_tuner("adaption_prompt", ADAPTION_PROMPT, _settings),
)
