"""What vLLM does to serve an adapter by its name, up to the weights in memory, in an environment of its own.

Nothing of this project is imported here; `HF_ENDPOINT` and vLLM's own settings are in the environment.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any


def an_adapter_is_resolved_and_read(base_id: str, lora_id: str) -> None:
    import torch
    from safetensors.torch import load_file
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.resolver import LoRAResolverRegistry
    from vllm.lora.utils import get_adapter_absolute_path
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    resolver = LoRAResolverRegistry.get_resolver("Hf Hub Resolver")

    def resolved(base: str, name: str) -> Any:
        return asyncio.run(resolver.resolve_lora(base, name))

    assert resolved(base_id, "admin/not-in-the-list") is None
    assert resolved("admin/another-base", lora_id) is None
    assert resolved(base_id, f"{lora_id}/no-such-folder") is None
    for name in (lora_id, f"{lora_id}/deep/two", f"{lora_id}/three"):
        request = resolved(base_id, name)
        assert request is not None, name
        assert request.lora_name == name
        folder = get_adapter_absolute_path(request.lora_path)
        helper = PEFTHelper.from_local_dir(folder, max_position_embeddings=256)
        helper.validate_legal(LoRAConfig(max_lora_rank=8))
        assert (helper.r, helper.lora_alpha) == (2, 4)
        modules = {"q_proj", "v_proj"}
        read = LoRAModel.from_local_checkpoint(folder, modules, helper, device="cpu", dtype=torch.float32)
        stored = load_file(Path(folder, "adapter_model.safetensors"))
        assert len(read.loras) == len(stored) // 2 == 4
        for site, lora in read.loras.items():
            prefix = f"base_model.model.{site}"
            torch.testing.assert_close(lora.lora_a, stored[f"{prefix}.lora_A.weight"])
            torch.testing.assert_close(lora.lora_b, stored[f"{prefix}.lora_B.weight"])
            assert lora.scaling == 2
    by_name = Path(get_adapter_absolute_path(lora_id))
    assert (by_name / "adapter_config.json").is_file()
    assert get_adapter_absolute_path("admin/no-such-adapter") == "admin/no-such-adapter"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
