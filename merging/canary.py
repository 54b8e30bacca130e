"""Whether an engine serves a patch: the log probabilities that it tells, beside those that the weights here give.

An engine that does not understand an adapter often serves the base under its name, and nothing in its answers says so.
So three things are compared at the token after each of some prompts: what the engine tells under the adapter's name,
what it tells under the base's, and what transformers computes here, in float32, of the base and of the base with the
patch folded in. Tokens are told apart by their text, and those whose text is that of no token or of several are left
out. Imports torch and transformers inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

Served = Literal["served", "serves the base", "serves something else", "cannot tell"]
Told = Sequence[tuple[str, float]]
"""The likeliest next tokens of a prompt as an engine tells them: text and log probability, in any order."""

TOLERANCE = 0.1
"""Mean difference of log probabilities, in nats, up to which two models count as one, in 16 bits or in 32."""

FEWEST = 0.25
"""Part of the engine's tokens that have to be told apart by their text."""

PROMPTS = (
    "The capital of France is",
    "1, 2, 3, 4,",
    "def main():\n    ",
    "Dear Sir or Madam,\n\n",
    "Question: What is the largest planet?\nAnswer:",
    "Once upon a time there was a",
    '{"name": "',
    "The opposite of hot is",
)

_NUMBERED = "token_id:"
"""How vLLM writes tokens with return_tokens_as_token_ids."""


@dataclass(frozen=True)
class Rows:
    """Log probabilities of the next token by prompt, for each token of the vocabulary. ids: the tokens of each text."""

    logprobs: Sequence[Sequence[float]]
    ids: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Verdict:
    """What an engine serves under an adapter's name. Numbers are mean differences of log probabilities, in nats.

    effect: of the patch on these prompts, here. to_patched, to_base: from what the engine tells of the adapter to what
    is computed here with the patch and without. to_its_base: to what the engine tells of its base, None where no base
    was named. base_to_base: from the engine's base to ours, None likewise. matched: the part of the engine's tokens
    that were told apart by their text.
    """

    verdict: Served
    why: str
    tolerance: float
    effect: float
    to_patched: float
    to_base: float
    to_its_base: float | None
    base_to_base: float | None
    matched: float

    def as_json(self) -> dict[str, Any]:
        """JSON values: a number that could not be had is null."""
        known = asdict(self).items()
        return {name: None if isinstance(one, float) and math.isnan(one) else one for name, one in known}


def next_logprobs(model: Path, tokenizer: Path, prompts: Sequence[str]) -> Rows:
    """What a causal model in a folder gives for the token after each prompt, in float32 on the CPU.

    Prompts are tokenised with the special tokens that the tokenizer puts before a text, as engines do.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words: Any = AutoTokenizer.from_pretrained(tokenizer)
    auto: Any = AutoModelForCausalLM
    loaded = auto.from_pretrained(model, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            logits = loaded(**words(prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
            rows.append(logits.log_softmax(-1).tolist())
    return Rows(rows, _texts(words, len(rows[0])))


def _texts(words: Any, count: int) -> Mapping[str, Sequence[int]]:
    """The tokens of each text: decoded alone, and as the vocabulary spells them with spaces for its signs of them."""
    found: dict[str, list[int]] = {}
    for number, raw in enumerate(words.convert_ids_to_tokens(list(range(min(count, len(words)))))):
        spelled = "" if raw is None else str(raw).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
        for text in {words.decode([number]), spelled} - {""}:
            found.setdefault(text, []).append(number)
    return found


def distance(told: Sequence[Told], ours: Rows) -> tuple[float, float]:
    """Mean |told - ours| over the tokens that were told, in nats, and the part of them that counts.

    A text of no token or of several says nothing: JSON objects hold one number for all tokens of one text. NaN where
    none is left.
    """
    differences, count = [], 0
    for tokens, row in zip(told, ours.logprobs, strict=True):
        numbers = [(_id(text, ours), logprob) for text, logprob in tokens]
        differences += [abs(logprob - row[number]) for number, logprob in numbers if number is not None]
        count += len(numbers)
    return (sum(differences) / len(differences) if differences else math.nan), len(differences) / count


def _id(text: str, ours: Rows) -> int | None:
    if text.startswith(_NUMBERED) and text.removeprefix(_NUMBERED).isdigit():
        return int(text.removeprefix(_NUMBERED))
    found = ours.ids.get(text, ())
    return found[0] if len(found) == 1 else None


def _between(one: Sequence[Told], other: Sequence[Told]) -> float:
    """Mean difference of what one engine told under two names, in nats; 0 where it told the very same.

    A token that was told once alone is at least as far as the least likely one that was told.
    """
    differences = []
    for first, second in zip(one, other, strict=True):
        there = dict(second)
        differences += [abs(logprob - there.get(text, min(there.values()))) for text, logprob in first]
    return sum(differences) / len(differences)


def effect(patched: Rows, base: Rows, count: int = 5) -> float:
    """Mean difference of ours with the patch and without, over the likeliest tokens with it, in nats."""
    differences = []
    for with_patch, without in zip(patched.logprobs, base.logprobs, strict=True):
        top = sorted(range(len(with_patch)), key=lambda number: -with_patch[number])[:count]
        differences += [abs(with_patch[number] - without[number]) for number in top]
    return sum(differences) / len(differences)


def judge(
    adapter: Sequence[Told], its_base: Sequence[Told] | None, patched: Rows, base: Rows, tolerance: float = TOLERANCE
) -> Verdict:
    """What the engine serves under the adapter's name. its_base: what it told under the base's; None unasked."""
    to_patched, matched = distance(adapter, patched)
    to_base, _ = distance(adapter, base)
    to_its_base = _between(adapter, its_base) if its_base is not None else None
    base_to_base = distance(its_base, base)[0] if its_base is not None else None
    size = effect(patched, base)
    if matched < FEWEST:
        unknown = f"of the engine's tokens {matched:.0%} have a text that one token of the tokenizer in --base has"
        found: tuple[Served, str] = ("cannot tell", unknown)
    else:
        found = _verdict(size, to_patched, to_base, to_its_base, base_to_base, tolerance)
    return Verdict(*found, tolerance, size, to_patched, to_base, to_its_base, base_to_base, matched)


def _verdict(
    size: float,
    to_patched: float,
    to_base: float,
    to_its_base: float | None,
    base_to_base: float | None,
    tolerance: float,
) -> tuple[Served, str]:
    is_patched = to_patched <= tolerance and to_patched < to_base
    if to_its_base == 0.0 and size > tolerance and not is_patched:
        return "serves the base", "both names give the very same log probabilities"
    if size < 2 * tolerance:
        little = f"the patch changes these prompts by {size:.3g} nats, less than twice the tolerance"
        return "cannot tell", f"{little}; give prompts that it is about (--prompt), or a smaller --tolerance"
    if base_to_base is not None and base_to_base > tolerance:
        return "cannot tell", "the engine's base is not the model in --base, or it reads prompts otherwise"
    if is_patched:
        return "served", "its log probabilities are those of the base with the patch, and not the base's"
    if to_base <= tolerance:
        return "serves the base", "its log probabilities are those of the base without the patch"
    return "serves something else", "its log probabilities are neither the base's nor those with the patch"
