"""Tiny real files: a model, a LoRA on it, cards."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from adapterhub.hub.context import Hub
from adapterhub.hub.services import repos
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular, commit
from adapterhub.merging import native

MakeUser = Callable[..., Caller]
"""The fixture `user`: makes a user of that name, who comes with a token of that role ("write")."""

HIDDEN = 8
SITE = "model.layers.{layer}.self_attn.{module}.weight"


def model(hidden: int = HIDDEN, layers: int = 2, seed: int = 0) -> list[AddRegular]:
    """The files of a full model whose attention projections are (hidden, hidden)."""
    numbers = np.random.default_rng(seed)
    tensors = {
        SITE.format(layer=layer, module=module): numbers.standard_normal((hidden, hidden)).astype(np.float32)
        for layer in range(layers)
        for module in ("q_proj", "v_proj")
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden}
    return [
        AddRegular("config.json", json.dumps(config).encode()),
        AddRegular("model.safetensors", save(tensors, {"format": "pt"})),
    ]


def int8_model(hidden: int = HIDDEN, layers: int = 2) -> list[AddRegular]:
    """The same model as bitsandbytes stores it in 8 bits: codes and a scale for each row."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(layers):
        for module in ("q_proj", "v_proj"):
            site = SITE.format(layer=layer, module=module)
            tensors[site] = np.arange(hidden * hidden, dtype=np.int8).reshape(hidden, hidden)
            tensors[site.removesuffix("weight") + "SCB"] = np.ones(hidden, np.float32)
            tensors[site.removesuffix("weight") + "weight_format"] = np.zeros((), np.uint8)
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config |= {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    return [
        AddRegular("config.json", json.dumps(config).encode()),
        AddRegular("model.safetensors", save(tensors, {"format": "pt"})),
    ]


def lora(base: str, *, hidden: int = HIDDEN, r: int = 2, layers: int = 2, folder: str = "") -> list[AddRegular]:
    """The files of a PEFT LoRA on the q_proj of each layer."""
    numbers = np.random.default_rng(1)
    tensors = {}
    for layer in range(layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = numbers.standard_normal((r, hidden)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = numbers.standard_normal((hidden, r)).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    return [
        AddRegular(f"{folder}adapter_config.json", json.dumps(config).encode()),
        AddRegular(f"{folder}adapter_model.safetensors", save(tensors, {"format": "pt"})),
    ]


def sparse(
    into: Path, base: Mapping[str, object], *, hidden: int = HIDDEN, contract: Mapping[str, object] | None = None
) -> list[AddRegular]:
    """The files of a native sparse patch on one site, written by way of the folder `into`."""
    delta = np.zeros((hidden, hidden), np.float32)
    delta[0, 1] = 0.5
    sites = {SITE.format(layer=0, module="v_proj"): native.sparse(delta)}
    native.write_patch(into, sites=sites, base=base, contract=contract)
    return [AddRegular(file.name, file.read_bytes()) for file in sorted(into.iterdir())]


def card(text: str = "# A patch\n", **fields: object) -> AddRegular:
    """A README.md; the fields are written as JSON, which YAML reads too."""
    front = "".join(f"{key.replace('_index', '-index')}: {json.dumps(value)}\n" for key, value in fields.items())
    return AddRegular("README.md", f"---\n{front}---\n{text}".encode())


def stock(hub: Hub, ann: Caller) -> Hub:
    """A hub with a base, a LoRA, a document and a private repository."""
    for name, private in (("base", False), ("code-lora", False), ("notes", False), ("hidden", True)):
        repos.create(hub, ann, f"ann/{name}", private=private)
    contents = {
        "base": [*model(), card("A small llama.", license="apache-2.0")],
        "code-lora": [*lora("ann/base"), card("Writes Python über café.", license="mit", tags=["code"])],
        "hidden": [card("Writes Python in secret.", license="mit")],
    }
    for name, operations in contents.items():
        commit(hub, ann, f"ann/{name}", "main", operations, "push")
    return hub


MODEL_INDEX: list[Mapping[str, object]] = [
    {
        "name": "x",
        "results": [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": "Prose", "type": "prose"},
                "metrics": [{"type": "loss", "value": 1.5}, {"type": "broken", "value": "n/a"}],
            }
        ],
    }
]
