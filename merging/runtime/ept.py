"""ept: a short prompt, enriched by low-rank updates of the embeddings and projected into subspaces behind a gate.

With ΔE = A B, whose rows are added to the embedded tokens by position as far as it reaches:
F = P + softmax(P ΔEᵀ / √d) ΔE is the prompt fused with what the low-rank matrices know, g = softmax(mean of P's rows ·
G) weighs the spaces, and Σ_k g_k · F D_k U_k comes before the tokens. A weight other than 1 is refused.

Differs: the paper names these parts; its own code is not public, so that the order above is what a patch of this
format means. Source: arXiv:2405.11464 (decomposition, prompt fusion, multi-space projection).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.merging import live
from adapterhub.merging.checkpoint import Folder
from adapterhub.merging.live import by_name, cache_of, check_weight, is_cached, override, tensor
from adapterhub.merging.live_prompts import embeddings_of, put_prompt
from adapterhub.merging.native_runtime import read_runtime
from adapterhub.merging.registry import RuntimeSpec
from adapterhub.merging.representations import EPT

if TYPE_CHECKING:
    import torch


def attach(model: Any, folder: Folder, path: str, weight: float) -> Callable[[], None]:
    patch = read_runtime(folder, path, EPT)
    check_weight("ept", weight)
    tokens, width = patch.shared["prompt"].shape

    def put() -> None:
        embeddings = embeddings_of(model)
        values = {name: tensor(handle, embeddings.weight).float() for name, handle in patch.shared.items()}
        prompt = prompt_of(values)
        put_prompt(model, tokens, width, lambda batch, task_ids: prompt.expand(batch, -1, -1))
        _put_update(model, embeddings, values["A"] @ values["B"])

    return live.attach(model, "ept", put)


def prompt_of(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The vectors (n, d) that come before the tokens."""
    P, delta = values["prompt"], values["A"] @ values["B"]
    fused = P + (P @ delta.T / P.shape[1] ** 0.5).softmax(-1) @ delta
    gate = (P.mean(0) @ values["gate"]).softmax(-1)
    spaces = fused @ values["down"] @ values["up"]  # (spaces, n, d)
    prompt: torch.Tensor = (gate[:, None, None] * spaces).sum(0)
    return prompt


_BEFORE = "_ept_before"
"""Attribute of a cache: how many of its places come before the text's own tokens."""


def _put_update(model: Any, embeddings: Any, delta: torch.Tensor) -> None:
    """Add the rows of `delta` to the embedded tokens of a sequence's beginning, before the prompt comes before them.

    Generated tokens are part of the sequence, as if it were read again as a whole.
    """
    inner = model.get_encoder() if model.config.is_encoder_decoder else model

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = by_name(original, args, kwargs)
        ids, cache = given.get("input_ids"), cache_of(given)
        if ids is None or (is_cached(given) and model.config.is_encoder_decoder):
            return original(**given)
        past = cache.get_seq_length() - getattr(cache, _BEFORE, 0) if is_cached(given) else 0
        embeds, mask = embeddings(ids), given.get("attention_mask")
        mask = ids.new_ones(len(ids), past + ids.shape[1]) if mask is None else mask.long()
        places = (mask.cumsum(1) - 1)[:, -ids.shape[1] :]  # of tokens that are no padding
        reaches = (mask[:, -ids.shape[1] :] > 0) & (places < len(delta))
        added = delta[places.clamp(0, len(delta) - 1)] * reaches[..., None]
        given["inputs_embeds"] = (embeds + added).to(embeds.dtype)
        del given["input_ids"]
        found = original(**given)
        cache = cache_of(found) if isinstance(found, Mapping) else None
        if cache is not None and not past and not model.config.is_encoder_decoder:
            setattr(cache, _BEFORE, cache.get_seq_length() - ids.shape[1])
        return found

    override(inner, "forward", forward)
    if inner is not model:
        override(model, "forward", forward)


SPEC = RuntimeSpec(
    name="ept",
    summary="A short prompt fused with two low-rank matrices and projected into gated subspaces",
    source="arXiv:2405.11464",
    attach=attach,
)
