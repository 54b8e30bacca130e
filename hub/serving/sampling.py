"""Chooses the next token. Imports torch: only an engine's process loads this."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapterhub.hub.serving.protocol import Sampling


class Sampler:
    """Draws the tokens of one answer, one after another; equal seeds and logits give equal tokens on one device."""

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        device: torch.device,
        vocabulary_size: int,
        prompt: Sequence[int] = (),
    ) -> None:
        self._sampling = sampling
        self._said = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
        self._said[list(prompt)] = True
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._counts = torch.zeros(vocabulary_size, dtype=torch.float32, device=device)
        self._bias = torch.zeros(vocabulary_size, dtype=torch.float32, device=device)
        for token, bias in sampling.logit_bias.items():
            self._bias[token] = bias

    def choose(self, logits: Tensor) -> int:
        """The next token. logits: (vocabulary,), any float dtype, not modified; computed in float32."""
        scores = logits.float()
        if self._sampling.repetition_penalty != 1:
            scores = repeated_less(scores, self._said, self._sampling.repetition_penalty)
        scores = scores + self._bias
        scores -= self._sampling.frequency_penalty * self._counts
        scores -= self._sampling.presence_penalty * (self._counts > 0)
        token = int(scores.argmax()) if self._sampling.temperature == 0 else self._draw(scores)
        self._counts[token] += 1
        self._said[token] = True
        return token

    def _draw(self, scores: Tensor) -> int:
        scores = scores / self._sampling.temperature
        if self._sampling.top_k is not None:
            scores = likeliest(scores, self._sampling.top_k)
        probabilities = torch.softmax(scores, dim=-1)
        if self._sampling.top_p < 1:
            probabilities = nucleus(probabilities, self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def repeated_less(scores: Tensor, said: Tensor, penalty: float) -> Tensor:
    """`scores` (vocabulary,) with those of tokens that were said divided by the penalty, or multiplied where negative.

    Source: arXiv:1909.05858 sec. 4.1; for negative scores as transformers has it.
    """
    return torch.where(said, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def likeliest(scores: Tensor, count: int) -> Tensor:
    """`scores` (vocabulary,) with all but the `count` largest at -inf; equals of the last one stay."""
    least = scores.topk(min(count, scores.shape[-1])).values[-1]
    return scores.masked_fill(scores < least, -torch.inf)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """`probabilities` (vocabulary,) with all but the likeliest set to 0: the fewest that sum to top_p, at least one.

    top_p in [0, 1]. The rest is not scaled up: torch.multinomial takes weights. Source: arXiv:1904.09751 sec. 3.1.
    """
    ordered, tokens = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    is_out = before >= top_p
    is_out[0] = False
    return probabilities.index_fill(0, tokens[is_out], 0.0)
