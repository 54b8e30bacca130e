"""shadow: a small network that runs beside a decoder, corrects the input of each block and follows its output.

peft itself runs it, on the live model. A weight other than 1 is refused. Source: peft 0.21 tuners/shadow.
"""

from collections.abc import Mapping
from typing import Any

from adapterhub.merging.live_peft import attach_tuner
from adapterhub.merging.peft_adapter import Adapter
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import SHADOW

_FIELDS = (
    "r",
    "shadow_alpha",
    "shadow_num_hidden_layers",
    "shadow_hidden_size",
    "shadow_num_attention_heads",
    "shadow_intermediate_size",
    "share_embeddings",
    "update_hidden_size",
)


def _settings(adapter: Adapter) -> Mapping[str, Any]:
    given = {name: adapter.config[name] for name in _FIELDS if adapter.config.get(name) is not None}
    return given | {"shadow_model": "mirror", "target_modules": sorted(adapter.modules)}


SPEC = RuntimeSpec(
    name="shadow",
    summary="A small network beside the decoder, whose state corrects and follows each block",
    source="peft 0.21 tuners/shadow",
    attach=attach_tuner("shadow", SHADOW, _settings),
)
