"""vLLM with the plug-in of examples/vllm_resolver, up to the weights in memory, in an environment of its own.

Nothing of this project is imported here; the plug-in is on the path, `HF_ENDPOINT` and `HF_TOKEN` in the environment.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any


def expressions_are_resolved_and_read(base: str, one: str, two: str, foreign: str) -> None:
    import torch
    from adapterhub_resolver import AdapterhubResolver, register  # type: ignore[import-not-found]
    from safetensors.torch import load_file
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    register()
    resolver = LoRAResolverRegistry.get_resolver("adapterhub")
    assert isinstance(resolver, LoRAResolver)
    assert isinstance(resolver, AdapterhubResolver)

    def resolved(name: str) -> Any:
        return asyncio.run(resolver.resolve_lora(base, name))

    def delta(name: str) -> dict[str, torch.Tensor]:
        """What vLLM's own loader will add to each weight."""
        request = resolved(name)
        assert request is not None, name
        assert request.lora_name == name
        helper = PEFTHelper.from_local_dir(request.lora_path, max_position_embeddings=256)
        helper.validate_legal(LoRAConfig(max_lora_rank=8))
        modules = {"q_proj", "v_proj", "o_proj"}
        read = LoRAModel.from_local_checkpoint(request.lora_path, modules, helper, device="cpu", dtype=torch.float32)
        assert len(read.loras) == len(load_file(Path(request.lora_path, "adapter_model.safetensors"))) // 2
        return {site: lora.lora_b @ lora.lora_a * lora.scaling for site, lora in read.loras.items()}

    expression = f"{base} + 0.7*{one} - 0.3*{two}"
    first, second, both = delta(one), delta(two), delta(expression)
    assert both.keys() == first.keys() | second.keys()
    assert len(both) > len(first)
    for site, found in both.items():
        zeros = torch.zeros_like(found)
        expected = 0.7 * first.get(site, zeros) - 0.3 * second.get(site, zeros)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    again, other = resolved(expression), resolved(one)
    assert again.lora_int_id == resolved(expression).lora_int_id != other.lora_int_id
    for name in ("admin/none", foreign, f"ties({base}; {one}, {two})", f"{base} + 0.5*admin/none", "no name at all"):
        assert resolved(name) is None, name


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
