"""A router for LoRAs that exist already: fitted to texts of their domains, by least squares, without a gradient.

At each linear layer that the experts change, the router is a matrix R (experts, in) that scores a token by its input x
there: the experts are mixed by softmax(R x), as LoRAMoE does. R solves a ridge regression of the tokens' domains
(one-hot, centred, every domain counting the same) on their inputs in the base; its scale, which the softmax needs and a
regression does not give, is the one of least cross-entropy on texts that the regression did not see.
Source: arXiv:2312.09979 sec. 3 (the router's form); Bishop, Pattern Recognition and Machine Learning, sec. 4.1.3 (least
squares for classification). Differs: LoRAMoE trains its router with the experts, on the loss of the language.
Imports torch: only the command on this machine loads this.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapterhub.merging.errors import InvalidParameter
from adapterhub.merging.live import module_at

RIDGE = 1e-3
"""What is added to the inputs' mean square, as a share of it."""
HELD_OUT = 5
"""Every so manieth text of a domain is kept from the regression."""
MOST_SCALE = 1e6
_GRAM_BYTES = 2 << 30
"""Bytes of Gram matrices at a time; more layers than that are fitted in further runs over the texts."""

Texts = Mapping[str, Sequence[Sequence[int]]]
"""Token ids of each text, by domain."""


@dataclass(frozen=True)
class Routes:
    """The router's matrices (experts, in) in float32 by module, experts in the order of the domains.

    accuracy: the share of the held-out tokens whose likeliest expert is their domain's own, the mean over domains; by
    module.
    """

    matrices: Mapping[str, Tensor]
    accuracy: Mapping[str, float]


@torch.no_grad()
def fit(model: nn.Module, modules: Sequence[str], texts: Texts, *, ridge: float = RIDGE) -> Routes:
    """A router at each of the model's linear layers named; the model is the base that the experts are for.

    Raises InvalidParameter for a domain of fewer than HELD_OUT texts, and for modules that are no linear layers or that
    no text runs through, UnknownSite for those that the model has not.
    """
    few = next((domain for domain, found in texts.items() if len(found) < HELD_OUT), None)
    if few is not None:
        raise InvalidParameter(f"{few}: {len(texts[few])} texts; at least {HELD_OUT} are needed, one of them held out")
    layers = {name: module_at(model, name) for name in modules}
    odd = next((name for name, layer in layers.items() if not isinstance(layer, nn.Linear)), None)
    if odd is not None:
        raise InvalidParameter(f"{odd}: is a {type(layers[odd]).__name__}; experts are routed at linear layers")
    device = next(model.parameters()).device
    matrices: dict[str, Tensor] = {}
    accuracy: dict[str, float] = {}
    for names in _groups({name: _width(layers[name]) for name in modules}):
        group = {name: layers[name] for name in names}
        raw, source_of = _regression(model, group, texts, device, ridge)
        scores = _scores(model, {name: group[name] for name in raw}, raw, texts, device)
        for name in names:
            source = source_of[name]
            scale, right = _scaled(scores[source])
            matrices[name] = (raw[source] * scale).T.float().contiguous().cpu()
            accuracy[name] = right
    return Routes(matrices, accuracy)


def _groups(widths: Mapping[str, int]) -> Iterator[list[str]]:
    """Modules whose Gram matrices fit into _GRAM_BYTES together, at least one."""
    group: list[str] = []
    room = _GRAM_BYTES
    for name, width in widths.items():
        if group and 8 * width * width > room:
            yield group
            group, room = [], _GRAM_BYTES
        group.append(name)
        room -= 8 * width * width
    if group:
        yield group


@dataclass
class _Sums:
    """Of the inputs of one layer: Σ w x xᵀ, and Σ w x of each domain."""

    gram: Tensor
    means: dict[str, Tensor] = field(default_factory=dict)


def _regression(
    model: nn.Module, layers: Mapping[str, nn.Module], texts: Texts, device: torch.device, ridge: float
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(in, experts) of each layer whose input no earlier one shares, and which layer stands for each."""
    sums: dict[str, _Sums] = {}
    source_of: dict[str, str] = {}
    for domain, several in texts.items():
        learnt = [text for number, text in enumerate(several) if not _is_held_out(number)]
        share = 1 / sum(map(len, learnt))

        def note(name: str, rows: Tensor, same: str, domain: str = domain, share: float = share) -> None:
            if source_of.setdefault(name, same) != name:
                return
            here = sums.setdefault(name, _Sums(rows.new_zeros(rows.shape[1], rows.shape[1])))
            here.gram.addmm_(rows.T, rows, alpha=share)
            mean = rows.sum(0) * share
            here.means[domain] = here.means[domain] + mean if domain in here.means else mean

        with _watched(layers, note):
            for text in learnt:
                _run(model, text, device)
    lacking = next((name for name in layers if name not in source_of), None)
    if lacking is not None:
        raise InvalidParameter(f"{lacking}: no text runs through this layer, so nothing can be routed at it")
    centred = torch.eye(len(texts), dtype=torch.float64, device=device) - 1 / len(texts)
    found = {}
    for name, one in sums.items():
        size = one.gram.trace() / len(one.gram)
        ridged = one.gram + ridge * size * torch.eye(len(one.gram), dtype=torch.float64, device=device)
        moments = torch.stack([one.means[domain] for domain in texts], dim=1) @ centred  # (in, experts)
        found[name] = torch.linalg.solve(ridged, moments)
    return found, source_of


def _scores(
    model: nn.Module, layers: Mapping[str, nn.Module], raw: Mapping[str, Tensor], texts: Texts, device: torch.device
) -> dict[str, list[Tensor]]:
    """x R of the held-out tokens (tokens, experts), one for each domain, by layer."""
    scores: dict[str, list[Tensor]] = {name: [] for name in layers}
    for several in texts.values():
        found: dict[str, list[Tensor]] = {name: [] for name in layers}

        def note(name: str, rows: Tensor, same: str, found: dict[str, list[Tensor]] = found) -> None:
            found[name].append(rows @ raw[name])

        with _watched(layers, note):
            for number, text in enumerate(several):
                if _is_held_out(number):
                    _run(model, text, device)
        for name, parts in found.items():
            scores[name].append(torch.cat(parts))
    return scores


def _scaled(scores: Sequence[Tensor]) -> tuple[float, float]:
    """The scale of least cross-entropy by golden section, which is convex in it, and the accuracy."""

    def entropy(logarithm: float) -> float:
        parts = [
            -torch.log_softmax(one * math.exp(logarithm), -1)[:, number].mean() for number, one in enumerate(scores)
        ]
        return float(sum(parts))

    low, high, ratio = 0.0, math.log(MOST_SCALE), (math.sqrt(5) - 1) / 2
    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if entropy(left) <= entropy(right) else (left, high)
    accuracy = [float((one.argmax(-1) == number).double().mean()) for number, one in enumerate(scores)]
    return math.exp((low + high) / 2), sum(accuracy) / len(accuracy)


@contextmanager
def _watched(layers: Mapping[str, nn.Module], note: Callable[[str, Tensor, str], None]) -> Iterator[None]:
    """`note(name, inputs (tokens, in) in float64, name of the first layer that took this very tensor)` at each run."""
    last: list[tuple[Tensor, str]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            same = next((one for tensor, one in last if tensor is x), name)
            if same == name:
                last[:] = [*last[-3:], (x, name)]
            note(name, x.reshape(-1, x.shape[-1]).double(), same)

        return see

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, text: Sequence[int], device: torch.device) -> None:
    model(input_ids=torch.tensor([text], device=device))


def _is_held_out(number: int) -> bool:
    return number % HELD_OUT == HELD_OUT - 1


def _width(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear)
    return layer.in_features
