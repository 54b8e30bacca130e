"""Several models that answer as one: at each step all of them read the same tokens, and an operator makes one of their
logits. What follows is as for a single model: sampling, stop texts, log probabilities, schemas.

Within a step, members that lie beside the weights of one base, and that base itself, are rows of one pass; others take
turns on its model, each with a key-value cache of its own. Between two steps every base is itself.
Imports torch: only an engine's process loads this.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from adapterhub.hub.errors import InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving.endpoints import RemoteLease, RemoteModel
from adapterhub.hub.serving.generation import Generation, Prompt, end_tokens
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.mixture import Adapter
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, Composition, Event, Generate, VariantSpec
from adapterhub.hub.serving.residents import Lease, Residents
from adapterhub.hub.serving.scheduler import Stage
from adapterhub.merging.decoding import operators
from adapterhub.merging.registry import make_parameters

RULED_OUT = 1e4
"""How far below the first member's log probability an operator's -inf lies: beyond reach, but not beyond a schema that
allows nothing else."""


class _Vocabulary(NamedTuple):
    """sha256 over the tokens and ids of a tokenizer, and the largest id."""

    digest: str
    last: int


_vocabularies: WeakKeyDictionary[Any, _Vocabulary] = WeakKeyDictionary()
"""Of each tokenizer in memory: reading one takes longer than many a request."""


@dataclass(frozen=True)
class Member:
    """One model of a composition, in memory. name: in messages."""

    name: str
    lease: Lease | RemoteLease

    @property
    def loaded(self) -> Loaded:
        return self.lease.loaded


class Troupe:
    """The models of a composition, here or elsewhere, until `release`, as a Lease is of one. Equal ones are one."""

    variant = None

    def __init__(self, spec: VariantSpec, composition: Composition, members: Sequence[Member]) -> None:
        """members: one a member of the composition, in its order. Raises InvalidRequest for such as do not go together:
        encoder-decoders and other vocabularies than the first's."""
        self.base = Stage(spec.vid)
        self.composition = composition
        first: dict[str, int] = {}
        vids = [one.vid for one in composition.members]
        self.rows = tuple(first.setdefault(vid, len(first)) for vid in vids)
        self.members = tuple(members[vids.index(vid)] for vid in first)
        self._leases = [one.lease for one in members]
        told = "\0".join([spec.vid, *(one.lease.execution_id for one in members)])
        self.execution_id = "ah-" + hashlib.sha256(told.encode()).hexdigest()[:16]
        _check_members(self.members)

    @property
    def loaded(self) -> Loaded:
        """The first member's, whose tokenizer and chat template all answers go through."""
        return self.members[0].loaded

    @property
    def size_bytes(self) -> int:
        """Bytes of all members beyond their bases, and of members that are bases."""
        return sum(one.lease.size_bytes for one in self.members)

    def begin(self, request: Generate) -> tuple[Prompt, Generation]:
        """The tokens of a request and what computes its answers. Raises InvalidRequest, TooLarge, Overloaded."""
        remote = [one.name for one in self.members if isinstance(one.lease, RemoteLease)]
        if remote and request.echo and request.logprobs is not None:
            raise InvalidRequest(f"echo: {remote[0]} is elsewhere, and asked for what follows the prompt alone")
        with _naming(self.members[0]):
            prompt = Prompt(self.loaded, request)
        read = replace(request, prompt=prompt.tokens, messages=None)
        for one in self.members[1:]:
            with _naming(one):
                prompt.max_tokens = min(prompt.max_tokens, Prompt(one.loaded, read).max_tokens)
        width = min(_width(one.loaded) for one in self.members)
        beyond = [token for token in (*prompt.tokens, *request.sampling.logit_bias) if token >= width]
        if beyond:
            raise InvalidRequest(f"token {beyond[0]} is not among the {width} that all models of {self._title} have")
        for one in self.members:
            one.lease.make_room(prompt, request)
        return prompt, ComposedGeneration(self, request, prompt)

    def release(self) -> None:
        for lease in self._leases:
            lease.release()

    @property
    def _title(self) -> str:
        return f"{self.composition.operator}({', '.join(one.name for one in self.members)})"


def lease(residents: Residents, spec: VariantSpec, how: str | None = MERGED) -> Lease | Troupe:
    """What `spec` describes, in memory; how: as of `Residents.lease`.

    None lets members of a composition lie beside the weights of a base that they share, where they can; they are merged
    else. Raises as `Residents.lease`, and InvalidRequest as `Troupe`.
    """
    composition = spec.composition
    if composition is None:
        return residents.lease(spec, how)
    if how == RUN_TIME:
        raise InvalidRequest(
            f"execution: models of {composition.operator}(...) run beside the weights where they share a base and can; "
            "leave it out, or ask for them merged"
        )
    with ExitStack() as undo:
        members = []
        for one, found in _leased(residents, composition, how):
            undo.callback(found.release)
            members.append(Member(one.label, found))
        troupe = Troupe(spec, composition, members)
        undo.pop_all()
        return troupe


def pin(residents: Residents, spec: VariantSpec) -> None:
    """Keep what `spec` describes in memory for good, as requests use it, however often it is asked.

    Raises as `lease`.
    """
    if spec.composition is None:
        residents.pin(spec)
        return
    for one, found in _leased(residents, spec.composition, None):
        if isinstance(found, Lease):
            residents.keep(one.vid, found)


def _leased(
    residents: Residents, composition: Composition, how: str | None
) -> Iterator[tuple[VariantSpec, Lease | RemoteLease]]:
    """The members one after the other, each in memory once it is given."""
    sharing = Counter(one.base_digest for one in composition.members if one.endpoint is None)
    for one in composition.members:
        if one.endpoint is not None:
            yield one, RemoteLease(one)
        else:
            yield one, _here(residents, one, is_beside=how is None and sharing[one.base_digest] > 1)


def _here(residents: Residents, spec: VariantSpec, *, is_beside: bool) -> Lease:
    if is_beside and not spec.is_base_alone:
        with suppress(InvalidRequest):  # it is more than can lie there, or nothing that can be had at all
            return residents.lease(spec, RUN_TIME)
    return residents.lease(spec)


# ---- what goes together ----------------------------------------------------------------------------------------------


def _check_members(members: Sequence[Member]) -> None:
    for one in members:
        if one.loaded.model.config.is_encoder_decoder:
            raise InvalidRequest(f"{one.name}: an encoder-decoder is not composed; name decoders alone")
        if one.loaded.tokenizer is None:
            raise InvalidRequest(f"{one.name}: has no tokenizer files, so nobody knows whether its tokens are the same")
    shared = _vocabulary(members[0].loaded.tokenizer)
    for one in members:
        if _vocabulary(one.loaded.tokenizer) != shared:
            raise InvalidRequest(_difference(members[0], one))
        if _width(one.loaded) <= shared.last:
            raise InvalidRequest(
                f"{one.name}: gives logits of {_width(one.loaded)} tokens, and its vocabulary, which is that of "
                f"{members[0].name}, goes up to {shared.last}"
            )


def _vocabulary(tokenizer: Any) -> _Vocabulary:
    found = _vocabularies.get(tokenizer)
    if found is None:
        tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
        text = repr(tokens).encode("utf-8", "surrogatepass")
        found = _Vocabulary(hashlib.sha256(text).hexdigest(), max((number for _, number in tokens), default=0))
        _vocabularies[tokenizer] = found
    return found


def _difference(one: Member, other: Member) -> str:
    """A sentence on the first token in which two vocabularies differ."""
    left, right = (set(member.loaded.tokenizer.get_vocab().items()) for member in (one, other))  # type: ignore[union-attr]
    token, number = min(left ^ right, key=lambda item: (item[1], item[0]))
    has, lacks = (one, other) if (token, number) in left else (other, one)
    return (
        f"{one.name} and {other.name} have different vocabularies, and models are composed over one: token {number} is "
        f"{token!r} in {has.name} and not in {lacks.name} ({len(left)} and {len(right)} tokens, "
        f"{len(left - right)} of the first are not in the second)"
    )


def _width(loaded: Loaded) -> int:
    """How many tokens a model gives logits of."""
    model: Any = loaded.model
    head = model.get_output_embeddings()  # none of one that is elsewhere
    return int(model.get_input_embeddings().num_embeddings if head is None else head.weight.shape[0])


@contextmanager
def _naming(member: Member) -> Iterator[None]:
    """Says of which member a refusal is."""
    try:
        yield
    except (InvalidRequest, TooLarge, UnfitPatch) as error:
        raise type(error)(f"{member.name}: {error}") from error


# ---- computing -------------------------------------------------------------------------------------------------------


def _groups(leases: Sequence[Lease | RemoteLease]) -> list[list[int]]:
    """The members here, by number, of each pass of a model."""
    joint: dict[int, list[int]] = {}
    alone = []
    for number, one in enumerate(leases):
        if isinstance(one, RemoteLease):
            continue
        if one.variant is None or isinstance(one.variant, Adapter):
            joint.setdefault(id(one.base), []).append(number)
        else:
            alone.append([number])
    return [*joint.values(), *alone]


@dataclass
class _Caches:
    """Of each group of members; and all tokens read so far, for those that have none and read everything again.

    begun: the next step's part of those that compute here, by member, and what was asked of those elsewhere, in order;
    None before that.
    """

    groups: list[Any]
    read: list[int] = field(default_factory=list)
    begun: "tuple[dict[int, Tensor], list[Future[Tensor]]] | None" = None


class ComposedGeneration(Generation):
    """The computation of one request by all members."""

    def __init__(self, troupe: Troupe, request: Generate, prompt: Prompt) -> None:
        super().__init__(troupe.loaded, request, prompt)
        self._reads_pieces = False
        plain = replace(request, json_schema=None)
        self._leases = [one.lease for one in troupe.members]
        self._members = [Generation(one.loaded, plain, prompt) for one in self._leases]  # for their passes
        self._ends = frozenset(token for one in self._leases for token in end_tokens(one.loaded))
        self._groups = _groups(self._leases)
        models: list[Any] = [one.loaded.model for one in self._leases]
        self._elsewhere = {number: one for number, one in enumerate(models) if isinstance(one, RemoteModel)}
        self._first = self._empty()
        self._asked: list[Future[Tensor]] = []
        self._rows = list(troupe.rows)
        here = (one.base.device for one in self._leases if isinstance(one, Lease))
        self._device = next(here, torch.device("cpu"))
        self._weights = troupe.composition.weights
        self._operator = operators()[troupe.composition.operator]
        self._parameters = make_parameters(
            self._operator.parameters, troupe.composition.parameters, self._operator.name
        )

    def rows(self) -> list[Any]:
        """None: several models compute each of its answers."""
        return []

    def unread(self) -> None:
        """None, likewise."""

    def make_room(self, tokens: int) -> None:
        for lease in self._leases:
            lease.room.need(tokens, self._request.n)

    def awaited(self) -> Future[Any] | None:
        return next((one for one in self._asked if not one.done()), None)

    def steps(self) -> Iterator[Sequence[Event]]:
        """As of one model. While a model elsewhere computes, steps bring nothing."""
        if not self._elsewhere:
            yield from super().steps()
            return
        self._begin(self._prompt.tokens, self._first)
        yield from self._until_told()
        for events in super().steps():
            yield events
            for answer in self._answers:
                if answer.tokens and answer.logits is None:
                    self._begin(answer.tokens[-1:], answer.cache)
            yield from self._until_told()

    def _until_told(self) -> Iterator[Sequence[Event]]:
        while self.awaited() is not None:
            yield ()
        self._asked.clear()

    def _empty(self) -> _Caches:
        return _Caches([None] * len(self._groups))

    def _begin(self, tokens: Sequence[int], caches: _Caches, keep: int = 1) -> None:
        """Ask all who are elsewhere for the next step, and compute the others' part of it."""
        asked = [model.ask([*caches.read, *tokens]) for model in self._elsewhere.values()]
        self._asked += asked
        has_read = bool(caches.read)
        caches.read.extend(tokens)
        found: dict[int, Tensor] = {}
        for number, group in enumerate(self._groups):
            unread = caches.read if has_read and caches.groups[number] is None else tokens
            base = self._leases[group[0]].base
            try:
                logits, caches.groups[number] = self._pass(group, unread, caches.groups[number], keep)
            finally:
                base.apply(None)
            found |= zip(group, logits[:, -keep:].float().to(self._device), strict=True)
        caches.begun = found, asked

    def forward(self, tokens: Sequence[int], cache: Any, keep: int) -> tuple[Tensor, Any]:
        """As of one model. cache: _Caches, None at the beginning."""
        caches: _Caches = self._first if cache is None else cache
        if caches.begun is None:
            self._begin(tokens, caches, keep)
        assert caches.begun is not None
        (found, asked), caches.begun = caches.begun, None
        found |= {
            number: one.result()[None].to(self._device) for number, one in zip(self._elsewhere, asked, strict=True)
        }
        width = min(one.shape[-1] for one in found.values())
        every = [found[number][:, :width] for number in range(len(found))]
        logits = torch.stack(every)[self._rows]  # (members, kept, vocabulary)
        return torch.stack([self._composed(one) for one in logits.unbind(1)]), caches

    def _pass(self, group: Sequence[int], tokens: Sequence[int], cache: Any, keep: int) -> tuple[Tensor, Any]:
        """Logits of a group's members, (members, kept, vocabulary), and the cache to go on with."""
        leases, first = [self._leases[number] for number in group], self._members[group[0]]
        lease = leases[0]
        if len(group) == 1:
            variant = lease.variant
            lease.base.apply(lease.base.mixture if isinstance(variant, Adapter) else variant)  # type: ignore[union-attr]
            logits, cache = first.forward(tokens, cache, keep)
            return logits[None], cache
        base: Any = lease.base
        base.apply(base.mixture)
        base.mixture.use([one.variant for one in leases], len(tokens))
        return first.forward_rows(tokens, cache, keep, len(group))

    def _composed(self, logits: Tensor) -> Tensor:
        """(members, vocabulary) as (vocabulary,)."""
        scores = self._operator.function(logits, self._weights, self._parameters)
        return torch.where(scores.isneginf(), logits[0].log_softmax(-1) - RULED_OUT, scores)
