"""Counts and measures what is served, for Prometheus. No label holds what a user chose. Never imports torch.

What the web process sees is measured by `Measured`, an engine around the engine; what only the engine knows is asked of
it at each scrape, and begins anew when its process does, as counters may.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from adapterhub.hub.errors import HubError
from adapterhub.hub.serving.protocol import (
    Answer,
    Called,
    Delta,
    EngineHandle,
    Event,
    Finished,
    Generate,
    Json,
    Started,
    Task,
    VariantSpec,
)

PREFIX = "adapterhub"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SECONDS_A_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1)


class Meters:
    """All there is to read at /metrics."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._engine = _OfEngine()
        registry.register(self._engine)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=PREFIX, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, namespace=PREFIX, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(name, text, labels, namespace=PREFIX, registry=registry, buckets=buckets)

        self.requests = counter("serve_requests", "Requests for models, answered.", "route", "status")
        self.seconds = histogram("serve_request_seconds", "From a request to the end of its answer.", "route")
        self.ttft = histogram("serve_ttft_seconds", "From a request to the first piece of its text.")
        self.tpot = histogram(
            "serve_tpot_seconds", "Of each token of an answer after its first piece.", buckets=_SECONDS_A_TOKEN
        )
        self.queue = histogram("serve_queue_seconds", "Waiting for the engine, beside what making the model took.")
        self.tokens = counter("serve_tokens", "Tokens read and written.", "kind")
        self.inflight = gauge("serve_inflight", "Requests that the engine has.")
        self.queued = gauge("serve_queued", "Those of them whose first token is not being computed yet.")
        self.errors = counter("variant_errors", "Requests for models, refused or failed.", "code")
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)

    def exposed(self, state: Json | None) -> bytes:
        """The text of all meters. state: of the engine, None while it does not answer."""
        self._engine.state = state
        return generate_latest(self._registry)


class Measured:
    """An engine whose requests are measured."""

    def __init__(self, engine: EngineHandle, meters: Meters) -> None:
        self._engine = engine
        self._meters = meters

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready

    async def load(self, spec: VariantSpec, *, pinned: bool = False) -> Json:
        return await self._engine.load(spec, pinned=pinned)

    async def generate(self, spec: VariantSpec, request: Generate) -> AsyncGenerator[Event, None]:
        watch = _Watch(self._meters)
        with watch.watching():
            async with aclosing(self._engine.generate(spec, request)) as events:
                async for event in events:
                    watch.see(event)
                    yield event

    async def task(self, spec: VariantSpec, request: Task) -> Answer:
        with self._meters.inflight.track_inprogress():
            answer = await self._engine.task(spec, request)
        if request.task == "embeddings":
            self._meters.tokens.labels("prompt").inc(answer.output["tokens"])
        return answer

    async def state(self) -> Json:
        return await self._engine.state()


class _Watch:
    """The times of one generation."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._began = monotonic()
        self._has_started = False
        self._first: dict[int, float] = {}
        self._pieces: dict[int, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._meters.inflight.inc()
        self._meters.queued.inc()
        try:
            yield
        except HubError as error:
            if self._has_started:  # earlier ones are the answer, and counted with it
                self._meters.errors.labels(type(error).__name__).inc()
            raise
        finally:
            self._meters.inflight.dec()
            if not self._has_started:
                self._meters.queued.dec()

    def see(self, event: Event) -> None:
        now = monotonic()
        match event:
            case Started():
                self._has_started = True
                self._meters.queued.dec()
                self._meters.queue.observe(max(0.0, now - self._began - event.materialise_ms / 1000))
                self._meters.tokens.labels("prompt").inc(event.prompt_tokens)
            case Delta() | Called():
                if not self._first:
                    self._meters.ttft.observe(now - self._began)
                self._first.setdefault(event.index, now)
                self._pieces[event.index] = self._pieces.get(event.index, 0) + 1
            case Finished():
                self._meters.tokens.labels("completion").inc(event.completion_tokens)
                # an answer that came in one piece, as a call that was held back, says nothing of its tokens
                if self._pieces.get(event.index, 0) > 1 and event.completion_tokens > 1:
                    took_s = now - self._first[event.index]
                    self._meters.tpot.observe(took_s / (event.completion_tokens - 1))


class _OfEngine(Collector):
    """What the engine says of itself."""

    def __init__(self) -> None:
        self.state: Mapping[str, Any] | None = None

    def collect(self) -> Iterator[Metric]:
        state = self.state
        yield GaugeMetricFamily(f"{PREFIX}_engine_up", "Whether the engine answers.", value=state is not None)
        if state is None:
            return
        for name, text, key in (
            ("cache_hits", "Models that were in memory when they were asked for, or were being made.", "hits"),
            ("cache_misses", "Models that had to be made.", "loads"),
            ("cache_evictions", "Models that left memory for others.", "evictions"),
            ("switch", "Turns of the device that were of another model than the one before.", "switches"),
        ):
            yield CounterMetricFamily(f"{PREFIX}_variant_{name}", text, value=state[key])
        yield SummaryMetricFamily(
            f"{PREFIX}_variant_materialize_seconds",
            "Reading and merging the weights of a model.",
            count_value=state["loads"],
            sum_value=state["load_s"],
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_variant_singleflight_waiters",
            "Requests that wait for a model that another of them makes.",
            value=state["waiting"],
        )
        sizes = GaugeMetricFamily(f"{PREFIX}_variant_bytes", "Bytes in memory, by what holds them.", labels=["tier"])
        for tier in ("base", "variant", "adapter"):
            held = (one["size_bytes"] for one in state["resident"] if one["kind"] == tier)
            sizes.add_metric([tier], sum(held))
        sizes.add_metric(["answers"], state.get("answers_bytes", 0))
        yield sizes
