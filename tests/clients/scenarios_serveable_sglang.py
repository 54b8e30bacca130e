"""What SGLang's own LoRA manager and memory pool make of adapters in folders, on the CPU, at one rank of parallelism.

Nothing of this project is imported here. Written: result.json, by adapter the error or nothing; deltas in the pool's
buffers, by the model's modules as the checkpoint has them, in float64.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

EMBEDDINGS = {"embed_tokens", "lm_head"}
STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def without_torchvision() -> None:
    """Let SGLang import what it has of torchvision: names of image transforms, in models that are not used here.

    torchvision's wheel needs the CUDA build of torch. transformers has looked for it before, and found none.
    """
    from transformers.utils.import_utils import is_torchvision_available, is_torchvision_v2_available

    assert not is_torchvision_available()
    assert not is_torchvision_v2_available()
    transforms = types.ModuleType("torchvision.transforms")
    functional = types.ModuleType("torchvision.transforms.functional")
    for module in (transforms, functional):
        module.InterpolationMode = object  # type: ignore[attr-defined]
    sys.modules |= {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.transforms": transforms,
        "torchvision.transforms.functional": functional,
    }


def loaded(folder: Path, config: Any) -> dict[str, Any]:
    """The deltas of an adapter in the pool's buffers. Raises what SGLang raises."""
    import torch
    from safetensors.torch import load_file
    from sglang.srt.lora.lora import LoRAAdapter
    from sglang.srt.lora.lora_config import LoRAConfig
    from sglang.srt.lora.lora_manager import LoRAManager
    from sglang.srt.lora.lora_registry import LoRARef
    from sglang.srt.lora.mem_pool import LoRAMemoryPool
    from sglang.srt.lora.utils import get_normalized_target_modules

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.anywhere = torch.nn.Parameter(torch.zeros(1))

    class Layer(torch.nn.Module):
        """A wrapped layer of one rank of parallelism: it holds all rows and columns."""

        def slice_lora_a_weights(self, weights: Any) -> Any:
            return weights

        slice_lora_b_weights = slice_lora_a_weights

    said = LoRAConfig(str(folder), base_vocab_size=config.vocab_size)
    manager = object.__new__(LoRAManager)
    manager.attn_dp_enabled, manager.lora_refs, manager.num_pinned_loras = False, {}, 0
    manager.validate_new_adapter(said, LoRARef(lora_name="one", lora_path=str(folder)))
    adapter = LoRAAdapter("one", said, config, None, None)
    adapter.initialize_weights_from_tensors(load_file(folder / "adapter_model.safetensors"))
    targets = get_normalized_target_modules(said.target_modules)
    pool = LoRAMemoryPool(
        base_hf_config=config,
        max_loras_per_batch=2,
        dtype=torch.float32,
        max_lora_rank=said.r,
        target_modules=targets,
        base_model=Model(),
        eviction_policy="lru",
        lora_added_tokens_size=0,
    )
    layers = [
        {f"model.layers.{number}.{name}": Layer() for name in targets - EMBEDDINGS}
        for number in range(config.num_hidden_layers)
    ]
    pool.load_lora_weight_to_buffer("one", 0, adapter, layers, Layer(), Layer())
    found: dict[str, Any] = {}
    for name, buffers in pool.A_buffer.items():
        for number, A in enumerate(buffers):
            of_layer = _parts(name, A[0].double(), pool.B_buffer[name][number][0].double(), said.r, config)
            found |= {f"model.layers.{number}.{part}": adapter.scaling * delta for part, delta in of_layer.items()}
    tops = [(pool.embedding_A_buffer, pool.embedding_B_buffer), (pool.lm_head_A_buffer, pool.lm_head_B_buffer)]
    for As, Bs in tops:
        found |= {name: adapter.scaling * Bs[name][0].double() @ A[0].double() for name, A in As.items()}
    return found


def _parts(name: str, A: Any, B: Any, r: int, config: Any) -> dict[str, Any]:
    """The products of a buffer's slices by the modules that they are of: all A's below one another, and all B's."""
    block = "mlp" if name in ("gate_up_proj", "down_proj") else "self_attn"
    head = config.hidden_size // config.num_attention_heads
    rows = {"k_proj": head * config.num_key_value_heads, "v_proj": head * config.num_key_value_heads}
    rows |= dict.fromkeys(STACKED["gate_up_proj"], config.intermediate_size)
    found: dict[str, Any] = {}
    start = 0
    for number, part in enumerate(STACKED.get(name, (name,))):
        stop = start + rows.get(part, config.hidden_size)
        found[f"{block}.{part}"] = B[start:stop] @ A[number * r : (number + 1) * r]
        start = stop
    return found


def names(base: Path, asked: list[str]) -> None:
    """Those names of modules for whose buffers SGLang has sizes, as JSON."""
    without_torchvision()
    from sglang.srt.lora.utils import get_default_hidden_dim, get_normalized_target_modules
    from transformers import AutoConfig

    found = []
    for name in asked:
        [normalised] = get_normalized_target_modules([name])
        try:
            get_default_hidden_dim(normalised, AutoConfig.from_pretrained(base), 0)
        except NotImplementedError:
            continue
        except (AttributeError, AssertionError):
            pass  # of another architecture's configuration: its sizes are looked for
        found.append(name)
    sys.stdout.write(json.dumps(found))


def main(folder: Path, out: Path, base: Path) -> None:
    without_torchvision()
    from safetensors.torch import save_file
    from sglang.srt.runtime_context import get_parallel
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    sizes = dict.fromkeys(("tp_size", "attn_tp_size", "moe_ep_size", "moe_tp_size"), 1)
    ranks = dict.fromkeys(("tp_rank", "moe_ep_rank", "moe_tp_rank"), 0)
    get_parallel().override_permanently(**sizes, **ranks)
    result = {}
    for adapter in sorted(folder.iterdir()):
        try:
            deltas = loaded(adapter, config)
        except (ValueError, AssertionError, RuntimeError, KeyError, IndexError) as error:
            result[adapter.name] = {"error": f"{type(error).__name__}: {error}"}
            continue
        result[adapter.name] = {}
        save_file({name: one.contiguous() for name, one in deltas.items()}, out / f"{adapter.name}.safetensors")
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "names":
        names(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(*map(Path, sys.argv[1:]))
