"""Several LoRAs as one routed patch: each is an expert, and the domain that a call declares chooses among them.

The patch is peft's POLY of N tasks and N skills whose table is diagonal: a task is a domain, its one skill that
domain's LoRA. It is a format that peft reads too. Imports torch inside functions only.
Source: Ponti et al., arXiv:2202.13914 sec. 3 (the table), as peft 0.21 `tuners/poly/layer.py` computes with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.merging.effects import part
from adapterhub.merging.errors import InvalidParameter, NotRepresentable
from adapterhub.merging.ops.lowrank import Factors, concatenate
from adapterhub.merging.routed import MAX_EXPERTS
from adapterhub.merging.terms import terms

if TYPE_CHECKING:
    import torch

    from adapterhub.merging.checkpoint import Checkpoint
    from adapterhub.merging.patch import Patch, SiteTerm

DOMAINS = "domains.json"
"""File beside the patch: the task's number by the name of its domain."""

LOGIT = 100.0
"""±: σ(100) is 1 in float32, and σ(-100) = 4e-44 vanishes beside it."""


def write_experts(experts: Mapping[str, Patch], base: Checkpoint, out: Path) -> dict[str, Any]:
    """Write the routed patch into the folder `out`; its domains by number, modules and rank.

    experts: LoRAs by their domains; those of smaller rank are filled up with zeros, and a module that a LoRA
    leaves alone gets zeros. Raises InvalidParameter for too few or too many, NotRepresentable for a patch that is more
    than low-rank terms of matrices stored (out, in).
    """
    from safetensors.torch import save_file

    if not 2 <= len(experts) <= MAX_EXPERTS:
        raise InvalidParameter(f"{len(experts)} experts; 2 to {MAX_EXPERTS} are routed")
    found = {domain: _products(domain, patch, base) for domain, patch in experts.items()}
    modules = sorted({module for products in found.values() for module in products})
    rank = max(one.right.shape[0] for products in found.values() for one in products.values())
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        n, m = base.tensors[f"{module}.weight"].shape
        A, B = _stacked([products.get(module) for products in found.values()], rank, n, m)
        stem = f"base_model.model.{module}."
        tensors |= {f"{stem}poly_lora_A": A, f"{stem}poly_lora_B": B}
        tensors[f"{stem}poly_router.module_logits"] = _table(len(found))
    out.mkdir(parents=True)
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    numbers = {domain: number for number, domain in enumerate(experts)}
    _write_json(out / "adapter_config.json", _config(base, modules, rank, len(found)))
    _write_json(out / DOMAINS, numbers)
    return {"domains": numbers, "modules": len(modules), "rank": rank}


def _products(domain: str, patch: Patch, base: Checkpoint) -> dict[str, Factors]:
    """Each module's delta as B @ A."""
    by_site: dict[str, list[SiteTerm]] = {}
    for term in patch.terms:
        by_site.setdefault(term.site, []).append(term)
    found = {}
    factors = terms()["lowrank"].factors
    assert factors is not None
    for site, several in by_site.items():
        wrong = next((term for term in several if term.term != "lowrank" or term.options.get("transpose")), None)
        if wrong is not None or not site.endswith(".weight") or len(base.tensors[site].shape) != 2:
            what = several[0].term if wrong is None else wrong.term
            raise NotRepresentable(f"{domain}: {site} has a {what} term; experts are low-rank terms of linear layers")
        shape = base.tensors[site].shape
        found[site.removesuffix(".weight")] = concatenate([Factors(*factors(part(one), shape)) for one in several])
    return found


def _stacked(several: list[Factors | None], rank: int, n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (1, experts, m, rank) and B (1, experts, rank, n) with x A B / rank = x Δᵀ."""
    import torch

    A, B = torch.zeros(1, len(several), m, rank), torch.zeros(1, len(several), rank, n)
    for number, one in enumerate(several):
        if one is not None:
            r = one.right.shape[0]
            A[0, number, :, :r], B[0, number, :r] = one.right.T, one.left.T * rank
    return A, B


def _table(count: int) -> torch.Tensor:
    import torch

    return torch.full((count, count), -LOGIT).fill_diagonal_(LOGIT)


def _config(base: Checkpoint, modules: list[str], rank: int, count: int) -> dict[str, Any]:
    return {
        "peft_type": "POLY",
        "task_type": _task_type(base),
        "base_model_name_or_path": base.name.partition("@")[0],
        "target_modules": modules,
        "r": rank,
        "n_tasks": count,
        "n_skills": count,
        "n_splits": 1,
        "poly_type": "poly",
        "inference_mode": True,
    }


def _task_type(base: Checkpoint) -> str | None:
    """peft's name of what the model does, which has its forward take task_ids; None for what peft does not name."""
    named = (("ForCausalLM", "CAUSAL_LM"), ("ForConditionalGeneration", "SEQ_2_SEQ_LM"))
    architecture = str((base.config.get("architectures") or [""])[0])
    return next((task for end, task in named if architecture.endswith(end)), None)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
