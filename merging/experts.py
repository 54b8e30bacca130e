"""Several LoRAs as one routed patch: each is an expert, and what a call declares, or a router, chooses among them.

Declared, the patch is peft's POLY of N tasks and N skills whose table is diagonal: a task is a domain, its one skill
that domain's LoRA. It is a format that peft reads too. With a router it is LoRAMoE's: the router mixes the experts at
each token and layer. Imports torch inside functions only.
Source: Ponti et al., arXiv:2202.13914 sec. 3 (the table), as peft 0.21 `tuners/poly/layer.py` computes with it;
arXiv:2312.09979 and its fork of peft, tuners/lora.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
"""File beside the patch: the task's, or the expert's, number by the name of its domain."""

LOGIT = 100.0
"""±: σ(100) is 1 in float32, and σ(-100) = 4e-44 vanishes beside it."""


@dataclass(frozen=True)
class Experts:
    """LoRAs by their domains, each module's delta as B @ A. modules: those that any of them changes, sorted."""

    base: Checkpoint
    products: Mapping[str, Mapping[str, Factors]]

    @classmethod
    def of(cls, patches: Mapping[str, Patch], base: Checkpoint) -> Experts:
        """Raises InvalidParameter for too few or too many, NotRepresentable for a patch that is more than low-rank
        terms of matrices stored (out, in)."""
        if not 2 <= len(patches) <= MAX_EXPERTS:
            raise InvalidParameter(f"{len(patches)} experts; 2 to {MAX_EXPERTS} are routed")
        return cls(base, {domain: _products(domain, patch, base) for domain, patch in patches.items()})

    @property
    def modules(self) -> list[str]:
        return sorted({module for products in self.products.values() for module in products})

    @property
    def rank(self) -> int:
        """The largest; the others are filled up with zeros."""
        return max(one.right.shape[0] for products in self.products.values() for one in products.values())

    @property
    def numbers(self) -> dict[str, int]:
        return {domain: number for number, domain in enumerate(self.products)}

    def stacked(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (experts, rank, in) and B (experts, out, rank) in float32; zeros for one that leaves the module alone."""
        import torch

        n, m = self.base.tensors[f"{module}.weight"].shape
        A, B = torch.zeros(len(self.products), self.rank, m), torch.zeros(len(self.products), n, self.rank)
        for number, products in enumerate(self.products.values()):
            if module in products:
                r = products[module].right.shape[0]
                A[number, :r], B[number, :, :r] = products[module].right, products[module].left
        return A, B


def write_declared(experts: Experts, out: Path) -> dict[str, Any]:
    """Write the patch whose every call declares its domain into the folder `out`; domains by number, modules, rank."""
    count, rank = len(experts.products), experts.rank
    tensors: dict[str, torch.Tensor] = {}
    for module in experts.modules:
        A, B = experts.stacked(module)
        stem = f"base_model.model.{module}."
        # peft computes x A B / rank, with one split in front
        tensors[f"{stem}poly_lora_A"] = A.mT[None].contiguous()
        tensors[f"{stem}poly_lora_B"] = B.mT[None].contiguous() * rank
        tensors[f"{stem}poly_router.module_logits"] = _table(count)
    config = {"peft_type": "POLY", "n_tasks": count, "n_skills": count, "n_splits": 1, "poly_type": "poly"}
    return _write(experts, out, tensors, config)


def write_routed(experts: Experts, routes: Mapping[str, torch.Tensor], out: Path) -> dict[str, Any]:
    """Write the patch whose router mixes the experts at each token into the folder `out`; as `write_declared`.

    routes: (experts, in) of each module, as `hub.serving.routing.fit` gives them.
    """
    tensors: dict[str, torch.Tensor] = {}
    for module in experts.modules:
        A, B = experts.stacked(module)
        stem = f"base_model.model.{module}."
        tensors[f"{stem}lora_route.weight"] = routes[module]
        for number in range(len(A)):
            tensors[f"{stem}lora_A{number}.weight"] = A[number].contiguous()
            tensors[f"{stem}lora_B{number}.weight"] = B[number].contiguous()
    # the fork's own balance of its training plays no part in what it computes
    config = {"peft_type": "LORA", "lora_nums": len(experts.products), "lora_alpha": experts.rank, "blc_alpha": 0.0}
    return _write(experts, out, tensors, config)


def _write(
    experts: Experts, out: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, Any]:
    from safetensors.torch import save_file

    common: dict[str, Any] = {
        "task_type": _task_type(experts.base),
        "base_model_name_or_path": experts.base.name.partition("@")[0],
        "target_modules": experts.modules,
        "r": experts.rank,
        "inference_mode": True,
    }
    out.mkdir(parents=True)
    save_file(dict(tensors), out / "adapter_model.safetensors", {"format": "pt"})
    _write_json(out / "adapter_config.json", {**common, **config})
    _write_json(out / DOMAINS, experts.numbers)
    return {"domains": experts.numbers, "modules": len(experts.modules), "rank": experts.rank}


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


def _table(count: int) -> torch.Tensor:
    import torch

    return torch.full((count, count), -LOGIT).fill_diagonal_(LOGIT)


def _task_type(base: Checkpoint) -> str | None:
    """peft's name of what the model does, which has its forward take task_ids; None for what peft does not name."""
    named = (("ForCausalLM", "CAUSAL_LM"), ("ForConditionalGeneration", "SEQ_2_SEQ_LM"))
    architecture = str((base.config.get("architectures") or [""])[0])
    return next((task for end, task in named if architecture.endswith(end)), None)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
