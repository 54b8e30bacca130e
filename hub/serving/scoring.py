"""Scores of recipes on held-out examples: one base stays in memory, each candidate borrows its model for its turn.

Imports torch: only a job's process, or the command on this machine, loads this.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from adapterhub.hub.errors import InvalidRequest, TooLarge
from adapterhub.hub.serving import loading, variants
from adapterhub.hub.serving.heldout import ENTROPY, HeldOut, Text, answer, texts
from adapterhub.hub.serving.loading import Loaded, Stored
from adapterhub.hub.serving.resident import Base
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.plan import Plan

BATCH_TOKENS = 4096
"""Most tokens that go through the model at once, unless one text is longer."""


class Bench:
    """A base in memory on which recipes are scored, one after another; between two it is itself, bit for bit."""

    def __init__(self, base: Stored, device: str = "cpu") -> None:
        """device: "auto" takes CUDA where there is one. Raises InvalidRequest for a model that cannot be loaded."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = Checkpoint.open(base.folder, base.path, name=base.name)
        shapes = {name: handle.shape for name, handle in weights.tensors.items()}
        self.base = Base(base.name, loading.load(base, torch.device(device)), shapes)

    def score(self, found: Plan, heldout: HeldOut) -> float:
        """The measure of the result of a plan on this base. Raises MergingError, UnfitPatch, and as `measure`."""
        return self.scores(found, [heldout])[0]

    def scores(self, found: Plan, several: Sequence[HeldOut]) -> list[float]:
        """The measure of each of several held-out files, the variant made once."""
        tensors = variants.tensors(found, self.base)
        variant = self.base.variant(found.recipe_digest, tensors, found.attachments, found.contract)
        self.base.apply(variant)
        try:
            return [measure(variant.loaded, heldout) for heldout in several]
        finally:
            self.base.apply(None)


@torch.inference_mode()
def measure(loaded: Loaded, heldout: HeldOut) -> float:
    """What a model scores on held-out examples: losses and entropy in nats, accuracy in [0, 1].

    A choice's score is the sum of its tokens' log probabilities, as lm-evaluation-harness has it for `acc`. Raises
    InvalidRequest for a model of another task and texts that are too short, TooLarge for those beyond its context.
    """
    is_classifier = type(loaded.model).__name__.endswith("ForSequenceClassification")
    if heldout.measure == "label loss":
        if not is_classifier:
            raise InvalidRequest(f"{type(loaded.model).__name__} has no classes; labels are for a classifier of texts")
        return _label_loss(loaded, heldout.lines)
    if heldout.measure == ENTROPY and is_classifier:
        return _class_entropy(loaded, heldout.lines)
    if not loaded.model.can_generate() or loaded.model.config.is_encoder_decoder:
        raise InvalidRequest(f"{type(loaded.model).__name__} does not continue texts, so it has no {heldout.measure}")
    if heldout.measure == "accuracy":
        return _accuracy(loaded, heldout.lines)
    if heldout.measure == "loss":
        pairs = [_from(tokens(loaded, text), 1) for text in texts(heldout.lines)]
    elif heldout.measure == ENTROPY:
        pairs = [(tokens(loaded, text), 1) for text in texts(heldout.lines)]
    else:
        pairs = [_joined(loaded, line["prompt"], line["completion"]) for line in heldout.lines]
    found = _of_tokens(loaded, pairs, is_entropy=heldout.measure == ENTROPY)
    return sum(total for total, _ in found) / sum(count for _, count in found)


# ---- language models -------------------------------------------------------------------------------------------------

_Pair = tuple[list[int], int]
"""Tokens, and how many of them are only read before those that count; 1 or more."""


def _accuracy(loaded: Loaded, lines: Sequence[Mapping[str, Any]]) -> float:
    pairs = [_joined(loaded, line["prompt"], choice) for line in lines for choice in line["choices"]]
    losses = iter(_of_tokens(loaded, pairs))
    right = 0
    for line in lines:
        of_choices = [next(losses)[0] for _ in line["choices"]]
        right += of_choices.index(min(of_choices)) == answer(line)
    return right / len(lines)


def _of_tokens(loaded: Loaded, pairs: Sequence[_Pair], *, is_entropy: bool = False) -> list[tuple[float, int]]:
    """For each text the sum over its counted places, and how many they are.

    The sum is of the tokens' losses; or of the entropies of all predictions, the one after the last token among them.
    """
    found: dict[int, tuple[float, int]] = {}
    for numbers in _batches([len(tokens) for tokens, _ in pairs]):
        tokens = torch.tensor([pairs[number][0] for number in numbers], device=loaded.model.device)
        output = loaded.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        # patches may put virtual tokens before the text's own
        logprobs = output.logits[:, -tokens.shape[1] :].float().log_softmax(-1)  # (texts, tokens, vocabulary)
        if is_entropy:
            sums = [(float(one), tokens.shape[1]) for one in _entropy(logprobs).double().sum(-1)]
        else:
            losses = -logprobs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].double()  # (texts, tokens - 1)
            starts = [pairs[number][1] - 1 for number in numbers]
            sums = [(float(one[start:].sum()), len(one) - start) for one, start in zip(losses, starts, strict=True)]
        found |= zip(numbers, sums, strict=True)
    return [found[number] for number in range(len(pairs))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of texts of one length, so that nothing is padded and a text's score does not depend on its company."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    for length, same in groupby(order, key=lambda number: lengths[number]):
        numbers = list(same)
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _joined(loaded: Loaded, prompt: Text, completion: Text) -> _Pair:
    before, after = tokens(loaded, prompt), _ids(loaded, completion, is_begun=True)
    if not after:
        raise InvalidRequest(f"{str(completion)[:80]!r}: a completion has one token or more")
    return _from(_checked(loaded, before + after), len(before))


def _from(tokens: list[int], start: int) -> _Pair:
    if not 1 <= start < len(tokens):
        raise InvalidRequest(f"tokens {tokens[:8]}: nothing stands before the first token whose loss counts")
    return tokens, start


def tokens(loaded: Loaded, text: Text) -> list[int]:
    """A text's token ids, special ones at its beginning. Raises InvalidRequest without a tokenizer, TooLarge beyond the
    context."""
    return _checked(loaded, _ids(loaded, text, is_begun=False))


def _ids(loaded: Loaded, text: Text, *, is_begun: bool) -> list[int]:
    """Token ids; special ones stand at the beginning alone."""
    if not isinstance(text, str):
        return list(text)
    if loaded.tokenizer is None:
        raise InvalidRequest("this model has no tokenizer files (tokenizer.json); give texts as lists of token ids")
    return list(loaded.tokenizer(text, add_special_tokens=not is_begun)["input_ids"])


def _checked(loaded: Loaded, tokens: list[int]) -> list[int]:
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    room = context - loaded.virtual_tokens if context else len(tokens)
    if len(tokens) > room:
        raise TooLarge(f"a text of {len(tokens)} tokens, and the model's context is {room}; cut the examples")
    embeddings: Any = loaded.model.get_input_embeddings()
    if not tokens or not 0 <= min(tokens) <= max(tokens) < embeddings.num_embeddings:
        raise InvalidRequest(f"tokens {tokens[:8]}: a text has tokens, all below {embeddings.num_embeddings}")
    return tokens


# ---- classifiers -----------------------------------------------------------------------------------------------------


def _label_loss(loaded: Loaded, lines: Sequence[Mapping[str, Any]]) -> float:
    labels = [_label(loaded, line["label"]) for line in lines]
    logprobs = _class_logprobs(loaded, texts(lines))
    return -sum(float(one[label]) for one, label in zip(logprobs, labels, strict=True)) / len(lines)


def _class_entropy(loaded: Loaded, lines: Sequence[Mapping[str, Any]]) -> float:
    """The mean entropy of the classes. Source: AdaMerging, arXiv:2310.02575 sec. 3.3."""
    return sum(float(_entropy(one)) for one in _class_logprobs(loaded, texts(lines))) / len(lines)


def _class_logprobs(loaded: Loaded, several: Sequence[Text]) -> Iterator[Tensor]:
    for text in several:
        ids = torch.tensor([tokens(loaded, text)], device=loaded.model.device)
        output = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        yield output.logits[0].double().log_softmax(-1)  # (classes)


def _label(loaded: Loaded, label: int | str) -> int:
    config: Any = loaded.model.config
    names = {str(name): int(number) for number, name in config.id2label.items()}
    number = names.get(label) if isinstance(label, str) else label
    if number is None or not 0 <= number < len(names):
        raise InvalidRequest(f"label {label!r}: the model has {', '.join(names)}")
    return number


def _entropy(logprobs: Tensor) -> Tensor:
    """H over the last dimension, in nats; a probability of 0 adds nothing."""
    return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)
