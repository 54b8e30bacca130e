"""arrow: routes each token to some of several LoRAs by the directions that they amplify most, without training.

The weight scales what is added. Source: arXiv:2405.11157, as peft saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.folders import join
from adapterhub.merging.live_lora import Delta, check_factors, fields_of, put_deltas
from adapterhub.merging.peft_adapter import Adapter, checked
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.routed import ARROW, EXPERT, arrow_experts, scaling

if TYPE_CHECKING:
    import torch


_ITERATIONS = 15
"""Steps of the power iteration, as in peft: another number gives other prototypes."""


def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
    router = checked(folder, path, ARROW)
    tasks, general = (
        [checked(folder, join(path.rpartition("/")[0], name), EXPERT) for name in names]
        for names in arrow_experts(router.config)
    )
    for expert in (*tasks, *general):
        check_factors(model, expert)
        if _shapes(expert) != _shapes(tasks[0]):
            raise InvalidPatch(f"{expert.file}: Arrow's adapters must have one rank and the same modules")

    def put() -> None:
        put_deltas(
            model, {name: _delta(model, router.config, tasks, general, name) for name in tasks[0].modules}, weight
        )

    return live.attach(model, "arrow", put)


def _shapes(expert: Adapter) -> Mapping[str, Any]:
    return {path: {name: one.shape for name, one in module.fields.items()} for path, module in expert.modules.items()}


def _delta(
    model: Any, config: Mapping[str, Any], tasks: Sequence[Adapter], general: Sequence[Adapter], path: str
) -> Delta:
    """Σ_e softmax over the k likeliest of |x · p_e| / t, times s_e B_e A_e x; p_e is B_e A_e's first right direction.

    With use_gks the mean of the general adapters' factors is first taken from each.
    """
    import torch

    arrow = config["arrow_config"]
    A, B = (torch.stack([fields_of(model, one.modules[path])[name] for one in tasks]) for name in "AB")
    if general:
        A, B = (
            own - torch.stack([fields_of(model, one.modules[path])[name] for one in general]).mean(0)
            for own, name in ((A, "A"), (B, "B"))
        )
    prototypes = torch.stack([_prototype(*pair, arrow.get("rng_seed")) for pair in zip(A, B, strict=True)])
    scales = torch.tensor([scaling(one, one.modules[path], A.shape[1]) for one in tasks], device=A.device)
    k, temperature = arrow.get("top_k", 3), arrow.get("router_temperature", 1.0)

    def delta(x: torch.Tensor) -> torch.Tensor:
        x = x.to(A.dtype)
        likeness = (x @ prototypes.T).abs()  # (…, experts)
        best, places = likeness.topk(k, dim=-1)
        chosen = torch.full_like(likeness, float("-inf")).scatter(-1, places, best).div(temperature).softmax(-1)
        lifted = torch.einsum("...i,eri,eor->...eo", x, A, B)
        added: torch.Tensor = ((chosen * scales)[..., None] * lifted).sum(-2)
        return added

    return delta


def _prototype(A: torch.Tensor, B: torch.Tensor, seed: int | None) -> torch.Tensor:
    """The first right singular vector of B A (in,), by power iteration; without a seed, 0 is taken."""
    import torch

    generator = torch.Generator(device=A.device).manual_seed(seed or 0)
    v = torch.randn(A.shape[1], dtype=A.dtype, device=A.device, generator=generator)
    v /= v.norm() + 1e-8
    for _ in range(_ITERATIONS):
        v = A.T @ (B.T @ (B @ (A @ v)))
        v /= v.norm() + 1e-8
    return v


SPEC = RuntimeSpec(
    name="arrow",
    summary="Chooses for each token among LoRAs by the directions they amplify most",
    source="arXiv:2405.11157, as peft saves it",
    attach=attach,
)
