"""What an engine holds in memory, by digest: bases, and the variants that were made of them.

A variant of low rank, or of few entries, is held merged, or beside the weights, where it shares passes with others and
is there as soon as its files are read. Which, the measured cost decides: alone on its base it stays beside the weights
until the time that this cost it would have paid for the merge, as with skis that one rents before one buys them. While
others of the base are asked for too, or were a moment ago, it stays there, for merged ones take turns; and so it does
beside weights of 4 or 8 bits, of which a merge would make 16. Each request keeps the way in which it began.
Imports torch: only an engine's process loads this.
"""

import hashlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile

import torch

from adapterhub import __version__
from adapterhub.hub.errors import InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving import loading, variants
from adapterhub.hub.serving.generation import Generation, Prompt
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.mixture import Adapter
from adapterhub.hub.serving.pool import Pool
from adapterhub.hub.serving.protocol import MERGED, RUN_TIME, Generate, Json, VariantSpec
from adapterhub.hub.serving.resident import Base, Variant
from adapterhub.hub.serving.rooms import ANSWER, Room, bytes_a_token
from adapterhub.merging.checkpoint import Checkpoint
from adapterhub.merging.plan import Plan

MERGE_S_PER_BYTE = 1e-9
"""What a merge costs before any was measured."""
MOST_REMEMBERED = 4096
COMPANY_S = 5.0
"""Seconds for which a variant that is no longer asked for counts as company of the others."""


class _NotBeside(Exception):
    """The variant is more than products and entries added to linear layers that share their weights with nothing."""


@dataclass(frozen=True)
class Lease:
    """A base and perhaps a variant of it, both in memory until `release`, which is called once."""

    base: Base
    variant: Variant | Adapter | None
    execution_id: str
    release: Callable[[], None]
    room: Room = field(default_factory=Room)

    @property
    def loaded(self) -> Loaded:
        """The model as the variant uses it."""
        return self.base.loaded if self.variant is None else self.variant.loaded

    @property
    def size_bytes(self) -> int:
        """Bytes of the variant beyond its base, of the base where there is none."""
        return self.base.size_bytes if self.variant is None else self.variant.size_bytes

    def begin(self, request: Generate) -> tuple[Prompt, Generation]:
        """The tokens of a request and what computes its answers. Raises InvalidRequest, TooLarge, Overloaded."""
        prompt = Prompt(self.loaded, request)
        self.make_room(prompt, request)
        return prompt, Generation(self.loaded, request, prompt, self.room)

    def make_room(self, prompt: Prompt, request: Generate) -> None:
        """Count the memory of a request's answers, so far as is known at its beginning. Raises Overloaded, TooLarge."""
        self.room.need(len(prompt.tokens) + min(prompt.max_tokens, ANSWER), request.n)


class Residents:
    """The bases and variants on one device, within a number of bytes. Safe to call from any thread."""

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        self.device = device
        self._pinned: dict[str, Lease] = {}
        self._pool = Pool(limit_bytes, lasting=(InvalidRequest, TooLarge, UnfitPatch))
        self._lock = threading.Lock()
        self._live: Counter[tuple[str, str]] = Counter()
        self._left: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._merged_bytes: OrderedDict[str, int | None] = OrderedDict()
        self._merge_s_per_byte = MERGE_S_PER_BYTE

    def lease(self, spec: VariantSpec, how: str | None = MERGED) -> Lease:
        """What `spec` describes, made where it is not there yet: once, however many ask at the same time.

        how: MERGED, RUN_TIME, or None for what is cheaper now. Raises InvalidRequest for a model that cannot be loaded
        and a variant that cannot be had in that way, UnfitPatch for a patch that does not fit it, TooLarge and
        Overloaded as the pool.
        """
        base = self._base(spec)
        live = (spec.base_digest, spec.vid)
        keys = [_base_key(spec)]

        @cache
        def plan() -> Plan:
            return variants.planned(spec, self._pool.limit_bytes)

        try:
            variant: Variant | Adapter | None = None
            if not spec.is_base_alone:
                variant = self._adapter(spec, base, how, plan) if self._is_beside(spec, base, how) else None
                keys.append(_adapter_key(spec) if variant is not None else _variant_key(spec))
                variant = self._variant(spec, base, plan) if variant is None else variant
        except BaseException:
            self._pool.release(_base_key(spec))
            raise
        with self._lock:
            self._live[live] += 1

        def release() -> None:
            with self._lock:
                self._live[live] -= 1
                if not self._live[live]:
                    del self._live[live]
                self._left[live] = time.monotonic()
                self._left.move_to_end(live)
                while len(self._left) > MOST_REMEMBERED:
                    self._left.popitem(last=False)
            room.free()
            for key in reversed(keys):
                self._pool.release(key)

        room = Room(self._pool, bytes_a_token(base.loaded.model))
        return Lease(base, variant, execution_id(spec.vid, base, variant), release, room)

    def _is_beside(self, spec: VariantSpec, base: Base, how: str | None) -> bool:
        """Whether to try the variant beside the weights."""
        if how is not None:
            return how == RUN_TIME
        if base.is_packed:
            return True  # a merged weight would be widened for good
        with self._lock:
            size_bytes = self._merged_bytes.get(spec.vid, 0)
            if self._has_company(spec, self._live):
                return True
            since = time.monotonic() - COMPANY_S
            is_lately = self._has_company(spec, takewhile(lambda key: self._left[key] > since, reversed(self._left)))
        is_merged = self._pool.holds(_variant_key(spec))
        if size_bytes is None or (is_merged and spec.vid in self._loaded):
            return False
        if is_lately or is_merged:
            return is_lately
        adapter = self._pool.peek(_adapter_key(spec))
        return not isinstance(adapter, Adapter) or adapter.paid_s < size_bytes * self._merge_s_per_byte

    def _has_company(self, spec: VariantSpec, used: Iterable[tuple[str, str]]) -> bool:
        """Whether another variant of the base is among those, which are named by base and vid."""
        return any(digest == spec.base_digest and vid != spec.vid for digest, vid in used)

    def load(self, spec: VariantSpec) -> Lease:
        """What `spec` describes, merged; while it stays in memory, requests that come alone use it so. As `lease`."""
        with self._lock:
            self._loaded[spec.vid] = None
            while len(self._loaded) > MOST_REMEMBERED:
                self._loaded.popitem(last=False)
        return self.lease(spec)

    def again(self, digest: str) -> Lease:
        """The base of that digest, to be looked at; for eviction this is no use of it.

        Raises InvalidRequest where it is not in memory.
        """
        key = "base", digest
        base: Base | None = self._pool.again(key)
        if base is None:
            raise InvalidRequest(f"{digest} is not in memory")
        return Lease(base, None, execution_id(digest, base, None), lambda: self._pool.release(key, was_used=False))

    def pin(self, spec: VariantSpec) -> None:
        """Keep what `spec` describes in memory for good, merged, however often it is asked. Raises as `lease`."""
        self.keep(spec.vid, self.load(spec))

    def keep(self, vid: str, lease: Lease) -> None:
        """Never release a lease, unless there is one of that vid already."""
        if self._pinned.setdefault(vid, lease) is not lease:
            lease.release()

    def state(self) -> Json:
        """Device, bytes, what is in memory, and what the pool did so far."""
        entries = [
            {
                "kind": one.key[0],
                "digest": one.key[1],
                "name": one.label,
                "size_bytes": one.size_bytes,
                "pins": one.pins,
            }
            for one in self._pool.held()
        ]
        return {
            "device": str(self.device),
            "limit_bytes": self._pool.limit_bytes,
            "used_bytes": self._pool.used_bytes,
            "answers_bytes": self._pool.reserved_bytes,
            "resident": entries,
            "waiting": self._pool.waiting,
            **vars(self._pool.counts),
        }

    def _base(self, spec: VariantSpec) -> Base:
        """Pinned."""

        @cache
        def weights() -> Checkpoint:
            return loading.checkpoint(spec.base)

        def make() -> Base:
            shapes = {name: handle.shape for name, handle in weights().tensors.items()}
            return Base(spec.base_digest, loading.load(spec.base, self.device), shapes)

        def measure() -> int:
            return sum(handle.nbytes for handle in weights().tensors.values())

        return self._pool.acquire(_base_key(spec), measure, make, label=spec.base.name)

    def _variant(self, spec: VariantSpec, base: Base, plan: Callable[[], Plan]) -> Variant:
        """Pinned; as long as it is in memory, its base is."""

        made_here: list[Variant] = []

        def measure() -> int:
            return variants.size_bytes(plan())

        def make() -> Variant:
            made = plan()
            began = time.monotonic()
            variant = base.variant(spec.vid, variants.tensors(made, base), made.attachments, made.contract)
            if variant.tensors:
                self._merge_s_per_byte = (time.monotonic() - began) / variant.size_bytes
            self._pool.resize(_variant_key(spec), variant.added_bytes - measure())
            self._base(spec)
            made_here.append(variant)
            return variant

        def on_evict() -> None:
            for vid, size_bytes in base.forget(made_here[0]).items():
                self._pool.resize(("variant", vid), size_bytes)
            self._pool.release(_base_key(spec))

        return self._pool.acquire(_variant_key(spec), measure, make, on_evict, label=spec.label)

    def _adapter(self, spec: VariantSpec, base: Base, how: str | None, plan: Callable[[], Plan]) -> Adapter | None:
        """Pinned; None where the variant is more than can lie beside weights, InvalidRequest where it was asked for."""
        if self._merged_bytes.get(spec.vid, 0) is None:
            return _refused(spec, how)

        def measure() -> int:
            # here, so that the pool remembers a plan that is refused
            size_bytes = variants.beside_bytes(plan(), base.dtype.itemsize)
            if size_bytes is None:
                raise _NotBeside
            self._remember(spec.vid, variants.size_bytes(plan()))
            return size_bytes

        def make() -> Adapter:
            made = base.adapter(spec.vid, variants.beside(plan()), plan().contract)
            if made is None:
                raise _NotBeside
            self._base(spec)
            return made

        try:
            return self._pool.acquire(
                _adapter_key(spec),
                measure=measure,
                make=make,
                on_evict=lambda: self._pool.release(_base_key(spec)),
                label=spec.label,
            )
        except _NotBeside:
            self._remember(spec.vid, None)
            return _refused(spec, how)

    def _remember(self, vid: str, merged_bytes: int | None) -> None:
        with self._lock:
            self._merged_bytes[vid] = merged_bytes
            while len(self._merged_bytes) > MOST_REMEMBERED:
                self._merged_bytes.popitem(last=False)


def _refused(spec: VariantSpec, how: str | None) -> Adapter | None:
    if how == RUN_TIME:
        raise InvalidRequest(
            f"{spec.label}: cannot run beside the weights of its base, since it is more than products of low rank "
            "and single entries added to linear layers; leave execution out, or ask for it merged"
        )
    return None


def _base_key(spec: VariantSpec) -> tuple[str, str]:
    return "base", spec.base_digest


def _variant_key(spec: VariantSpec) -> tuple[str, str]:
    return "variant", spec.vid


def _adapter_key(spec: VariantSpec) -> tuple[str, str]:
    return "adapter", spec.vid


def execution_id(vid: str, base: Base, variant: Variant | Adapter | None) -> str:
    """Names what computed what: equal ones answer alike. Shown as OpenAI's `system_fingerprint`."""
    is_beside = isinstance(variant, Adapter) or (variant is not None and variant.attached is not None)
    how = RUN_TIME if is_beside else MERGED
    parts = (vid, __version__, torch.__version__, str(base.device), str(base.dtype), how)
    return "ah-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
