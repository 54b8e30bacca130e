"""What vLLM's own loader makes of adapters in folders, up to the factors in memory: what needs no GPU.

Nothing of this project is imported here. Written: result.json, by adapter what was refused or loaded, by tensor alone
what becomes of it; deltas of what was loaded, by the model's modules, in float64.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def expected_modules() -> set[str]:
    """The names that a Llama's adapters may end with, from vLLM's own class of the model."""
    from vllm.model_executor.models.llama import LlamaForCausalLM

    packed = [one for parts in LlamaForCausalLM.packed_modules_mapping.values() for one in parts]
    return {*packed, "o_proj", "down_proj", *LlamaForCausalLM.embedding_modules}


def load(folder: Path, helper: Any) -> Any:
    import torch
    from vllm.lora.lora_model import LoRAModel

    return LoRAModel.from_local_checkpoint(
        str(folder), expected_modules(), helper, device="cpu", dtype=torch.float64, model_vocab_size=32
    )


def whole(folder: Path, modules: set[str], out: Path) -> dict[str, Any]:
    """What an adapter comes to: the error, or its modules, those that the model does not have apart."""
    from safetensors.torch import save_file
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    refused = {}
    for rank in (8, 16, 32, 512):
        try:
            PEFTHelper.from_local_dir(str(folder), 64).validate_legal(LoRAConfig(max_lora_rank=rank))
        except (ValueError, TypeError) as error:
            refused[rank] = str(error)
    try:
        if 512 in refused:
            raise ValueError(refused[512])
        loaded = load(folder, PEFTHelper.from_local_dir(str(folder), 64))
    except (ValueError, RuntimeError, AttributeError) as error:
        return {"error": str(error), "refused_ranks": sorted(refused)}
    deltas = {name: one.scaling * one.lora_b @ one.lora_a for name, one in loaded.loras.items()}
    save_file({name: one.contiguous() for name, one in deltas.items() if name in modules}, out)
    return {"unplaced": sorted(set(deltas) - modules), "refused_ranks": sorted(refused)}


def one_tensor(name: str, tensor: Any, modules: set[str]) -> str:
    """What becomes of one tensor in a file of its own: "refused", "passed over", "unplaced" or "loaded"."""
    from safetensors.torch import save_file
    from vllm.lora.peft_helper import PEFTHelper

    with tempfile.TemporaryDirectory() as place:
        save_file({name: tensor}, Path(place, "adapter_model.safetensors"))
        try:
            loaded = load(Path(place), PEFTHelper(r=4, lora_alpha=8, target_modules=[]))
        except ValueError:
            return "refused"
    if not loaded.loras:
        return "passed over"
    return "loaded" if set(loaded.loras) <= modules else "unplaced"


def experts(folder: Path, out: Path) -> None:
    """Mixtral's experts as vLLM packs them for its kernel: deltas by layer, projection and expert; an error's name."""
    import torch
    from safetensors.torch import save_file
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import PackedLoRALayerWeights
    from vllm.lora.peft_helper import PEFTHelper

    helper = PEFTHelper.from_local_dir(str(folder), 64)
    count = json.loads((folder.parent / "base" / "config.json").read_text())["num_local_experts"]
    names = [f"experts.{number}.{part}" for number in range(count) for part in ("w1", "w2", "w3")]
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", *names}
    loaded = LoRAModel.from_local_checkpoint(str(folder), expected, helper, device="cpu", dtype=torch.float64)
    deltas = {}
    for layer in range(2):
        stem = f"model.layers.{layer}.block_sparse_moe."
        try:
            packed = PackedLoRALayerWeights.pack_moe([loaded.loras.get(stem + one) for one in names], stem + "experts")
        except AssertionError:
            sys.stdout.write("refused")
            return
        assert packed.optimize().scaling == [1, 1, 1]
        for part, A, B in zip(("w1", "w2", "w3"), packed.lora_a, packed.lora_b, strict=True):
            deltas[f"{layer}.{part}"] = (B @ A).contiguous()
    save_file(deltas, out)
    sys.stdout.write("loaded")


def main(folder: Path, out: Path, modules: set[str]) -> None:
    from safetensors.torch import load_file

    result = {}
    for adapter in sorted(folder.iterdir()):
        tensors = load_file(adapter / "adapter_model.safetensors")
        alone = {name: one_tensor(name, tensor, modules) for name, tensor in tensors.items()}
        result[adapter.name] = {**whole(adapter, modules, out / f"{adapter.name}.safetensors"), "tensors": alone}
    (out / "result.json").write_text(json.dumps(result))


def tables(names: list[str]) -> None:
    """What vLLM's classes of models say of adapters, as JSON; those whose class cannot be imported are left out."""
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    found = {}
    for name in names:
        try:
            model = ModelRegistry.models[name].load_model_cls()
        except ImportError:
            continue  # of a library for images or compressed weights that is not installed
        embeddings = sorted(getattr(model, "embedding_modules", None) or {})
        found[name] = [bool(supports_lora(model)), embeddings, bool(getattr(model, "is_3d_moe_weight", False))]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "tables":
        tables(sys.argv[2:])
    elif sys.argv[1] == "experts":
        experts(*map(Path, sys.argv[2:]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), set(Path(sys.argv[3]).read_text().split()))
