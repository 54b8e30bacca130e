"""Shares one model between requests of many variants: one variant at a time, for a short while each.

Between two turns the weights change hands by pointer, so a turn costs next to nothing. Requests of one variant decode
in one pass, and so do those of all variants that lie beside the weights. Nothing computed under one variant's weights
is ever continued under another's: caches belong to requests, and joint ones to the requests of one turn's weights.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol, TypeVar

import torch

from adapterhub.hub.serving.batching import Batches, Prompt, Row, alike
from adapterhub.hub.serving.mixture import Adapter, Mixture
from adapterhub.hub.serving.resident import Base, Variant

TURN_S = 0.25
"""Seconds that a variant computes while another waits."""


class Work(Protocol):
    """One request that is being computed."""

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""

    def rows(self) -> Sequence[Row]:
        """Its answers whose next logits can be computed together with those of other requests."""

    def unread(self) -> Prompt | None:
        """Its prompt, where it can be read together with those of other requests."""

    def steps(self) -> Iterator[Future[Any] | None]:
        """Computes a piece at each step, under the weights of its variant. Must not raise.

        A step that gives a future wants no further one before that is done, and others compute meanwhile.
        """

    def refuse(self, error: Exception) -> None:
        """Called instead of further steps where its variant cannot be applied."""

    def close(self) -> None:
        """Called once, after the last step: gives back what it holds."""


class Weights(Protocol):
    """What turns are given on: a Base, or what has the digest and switches weights itself within a step."""

    @property
    def digest(self) -> str: ...

    def apply(self, variant: Variant | Mixture | None) -> None: ...


class Stage:
    """Weights that switch themselves within a step, or are elsewhere: there is nothing to switch between turns."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def apply(self, variant: Variant | Mixture | None) -> None:
        """Nothing."""


_Steps = Iterator[Future[Any] | None]
_Begun = list[tuple[Work, _Steps]]


@dataclass
class _Group:
    """The requests of one variant, or of all beside the weights. waiting: those that have not begun, or go on."""

    key: Hashable
    base: Weights
    variant: Variant | Mixture | None
    batches: Batches | None
    waiting: deque[tuple[Work, _Steps]] = field(default_factory=deque)


class Scheduler:
    """One thread that computes, the only one that may change which weights a model points at.

    switches: how often a turn was of another variant than the one before.
    """

    def __init__(self, turn_s: float = TURN_S) -> None:
        self.switches = 0
        self._turn_s = turn_s
        self._groups: dict[Hashable, _Group] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, base: Weights, variant: Variant | Adapter | None, work: Work) -> None:
        """Compute `work` when its variant's turn comes. base and variant stay pinned until its `close`."""
        key: Hashable = (base.digest, variant.vid if variant else None)
        mixture = None
        if isinstance(variant, Adapter):
            assert isinstance(base, Base)  # an adapter lies on one
            key, mixture, variant = (base.digest, Mixture), base.mixture, None
        batches = Batches(base.loaded.model, mixture) if isinstance(base, Base) else None
        self._queue(_Group(key, base, mixture or variant, batches), work, work.steps())

    def _queue(self, group: _Group, work: Work, steps: _Steps) -> None:
        """Have a work compute with its group, which is the one given where none of its key waits."""
        with self._changed:
            self._groups.setdefault(group.key, group).waiting.append((work, steps))
            self._changed.notify()

    def _run(self) -> None:
        running: dict[Hashable, _Begun] = {}
        last: Hashable = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._groups))
                key = next(iter(self._groups))
                group = self._groups[key]
            self.switches += last not in (None, key)
            last = key
            begun = running.setdefault(key, [])
            failure = _applied(group)
            if failure is None:
                self._turn(group, begun)
            else:
                self._refuse(group, begun, failure)
            with self._changed:
                # to the end of the row, behind everybody who waited meanwhile
                del self._groups[key]
                if begun or group.waiting:
                    self._groups[key] = group
                    continue
            del running[key]
            group.base.apply(None)

    def _refuse(self, group: _Group, begun: _Begun, failure: Exception) -> None:
        while group.waiting:
            begun.append(group.waiting.popleft())
        for work, _ in begun:
            work.refuse(failure)
            work.close()
        begun.clear()

    def _turn(self, group: _Group, begun: _Begun) -> None:
        ends = monotonic() + self._turn_s
        with torch.inference_mode():
            while True:
                while group.waiting:
                    begun.append(group.waiting.popleft())
                if not begun:
                    return
                if group.batches is not None:
                    _read(group.batches, begun)
                    _decode(group.batches, begun)
                for one in list(begun):
                    if not self._step(group, *one):
                        begun.remove(one)
                if monotonic() >= ends and len(self._groups) > 1:
                    return

    def _step(self, group: _Group, work: Work, steps: _Steps) -> bool:
        """Whether there is more to do now; what waits for something comes back to its group by itself."""
        if work.is_cancelled:
            work.close()
            return False
        try:
            awaited = next(steps)
        except StopIteration:
            work.close()
            return False
        if awaited is None:
            return True
        awaited.add_done_callback(lambda _: self._queue(group, work, steps))
        return False


def _applied(group: _Group) -> Exception | None:
    """What keeps the group's variant from being applied, None once it is; the model is then the base itself."""
    try:
        group.base.apply(group.variant)
    except Exception as error:  # noqa: BLE001 the edge of the computing thread: all who wait are told
        return error
    return None


_T = TypeVar("_T")


def _read(batches: Batches, begun: _Begun) -> None:
    """Read the prompts that wait, in as few passes as their lengths allow; one alone is read by itself."""
    waiting = [(one, prompt) for one in begun if not one[0].is_cancelled and (prompt := one[0].unread()) is not None]
    while len(waiting) > 1:
        chosen = {id(prompt) for prompt in alike([prompt for _, prompt in waiting])}
        together = [pair for pair in waiting if id(pair[1]) in chosen]
        waiting = [pair for pair in waiting if id(pair[1]) not in chosen]
        if len(together) > 1:
            _pass(batches.read, together, begun)


def _decode(batches: Batches, begun: _Begun) -> None:
    """Compute the next logits of all answers that wait for them, in few passes; one alone does it by itself."""
    waiting = [(one, row) for one in begun if not one[0].is_cancelled for row in one[0].rows()]
    works = {id(row): one for one, row in waiting}
    for rows in batches.passes([row for _, row in waiting]):
        together = [(works[id(row)], row) for row in rows if works[id(row)] in begun]
        if together:
            _pass(batches.advance, together, begun)


def _pass(
    compute: Callable[[Sequence[_T]], None], together: Sequence[tuple[tuple[Work, _Steps], _T]], begun: _Begun
) -> None:
    """Compute for several; where it fails, all of them are told."""
    try:
        compute([one for _, one in together])
    except Exception as error:  # noqa: BLE001 the edge of the computing thread: all who were in the pass are told
        for one in {id(one): one for one, _ in together}.values():
            begun.remove(one)
            one[0].refuse(error)
            one[0].close()
