"""What an engine holds in memory, by digest: bases, and the variants that were made of them.

Imports torch: only an engine's process loads this.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from adapterhub import __version__
from adapterhub.hub.errors import InvalidRequest, TooLarge, UnfitPatch
from adapterhub.hub.serving import loading, variants
from adapterhub.hub.serving.generation import Generation, Prompt
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.pool import Pool
from adapterhub.hub.serving.protocol import Generate, Json, VariantSpec
from adapterhub.hub.serving.resident import Base, Variant
from adapterhub.merging.plan import Plan


@dataclass(frozen=True)
class Lease:
    """A base and perhaps a variant of it, both in memory until `release`, which is called once."""

    base: Base
    variant: Variant | None
    execution_id: str
    release: Callable[[], None]

    @property
    def loaded(self) -> Loaded:
        """The model as the variant uses it."""
        return self.base.loaded if self.variant is None else self.variant.loaded

    @property
    def size_bytes(self) -> int:
        """Bytes of the variant beyond its base, of the base where there is none."""
        return self.base.size_bytes if self.variant is None else self.variant.size_bytes

    def begin(self, request: Generate) -> tuple[Prompt, Generation]:
        """The tokens of a request and what computes its answers. Raises InvalidRequest, TooLarge."""
        prompt = Prompt(self.loaded, request)
        return prompt, Generation(self.loaded, request, prompt)


class Residents:
    """The bases and variants on one device, within a number of bytes. Safe to call from any thread."""

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        self.device = device
        self._pinned: dict[str, Lease] = {}
        self._pool = Pool(limit_bytes, lasting=(InvalidRequest, TooLarge, UnfitPatch))

    def lease(self, spec: VariantSpec) -> Lease:
        """What `spec` describes, made where it is not there yet: once, however many ask at the same time.

        Raises InvalidRequest for a model that cannot be loaded, UnfitPatch for a patch that does not fit it, TooLarge
        and Overloaded as the pool.
        """
        base = self._base(spec)
        try:
            variant = None if spec.is_base_alone else self._variant(spec, base)
        except BaseException:
            self._pool.release(_base_key(spec))
            raise

        def release() -> None:
            if variant is not None:
                self._pool.release(_variant_key(spec))
            self._pool.release(_base_key(spec))

        return Lease(base, variant, execution_id(spec.vid, base, variant), release)

    def pin(self, spec: VariantSpec) -> None:
        """Keep what `spec` describes in memory for good, however often it is asked. Raises as `lease`."""
        for one in spec.models:
            lease = self.lease(one)
            if self._pinned.setdefault(one.vid, lease) is not lease:
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
            "resident": entries,
            **vars(self._pool.counts),
        }

    def _base(self, spec: VariantSpec) -> Base:
        """Pinned."""

        weights = loading.checkpoint(spec.base)

        def make() -> Base:
            shapes = {name: handle.shape for name, handle in weights.tensors.items()}
            return Base(spec.base_digest, loading.load(spec.base, self.device), shapes)

        def measure() -> int:
            return sum(handle.nbytes for handle in weights.tensors.values())

        return self._pool.acquire(_base_key(spec), measure, make, label=spec.base.name)

    def _variant(self, spec: VariantSpec, base: Base) -> Variant:
        """Pinned; as long as it is in memory, its base is."""

        @cache
        def plan() -> Plan:
            return variants.planned(spec, self._pool.limit_bytes)

        def make() -> Variant:
            made = plan()
            variant = base.variant(spec.vid, variants.tensors(made, base), made.attachments, made.contract)
            self._base(spec)
            return variant

        return self._pool.acquire(
            _variant_key(spec),
            measure=lambda: variants.size_bytes(plan()),
            make=make,
            on_evict=lambda: self._pool.release(_base_key(spec)),
            label=spec.label,
        )


def _base_key(spec: VariantSpec) -> tuple[str, str]:
    return "base", spec.base_digest


def _variant_key(spec: VariantSpec) -> tuple[str, str]:
    return "variant", spec.vid


def execution_id(vid: str, base: Base, variant: Variant | None) -> str:
    """Names what computed what: equal ones answer alike. Shown as OpenAI's `system_fingerprint`."""
    how = "merged" if variant is None or variant.attached is None else "run-time"
    parts = (vid, __version__, torch.__version__, str(base.device), str(base.dtype), how)
    return "ah-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
