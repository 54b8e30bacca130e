"""What the scheduler makes of requests that are there at the same time, in this process; and what transformers says."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from adapterhub.hub.errors import HubError
from adapterhub.hub.serving.compositions import Troupe
from adapterhub.hub.serving.protocol import Delta, Generate, Sampling
from adapterhub.hub.serving.residents import Lease
from adapterhub.hub.serving.scheduler import Scheduler
from tests.hub.serving import models


def greedy(prompt: str, count: int) -> Generate:
    return Generate(prompt=prompt, max_tokens=count, sampling=Sampling(temperature=0))


class Collecting:
    """A generation whose text is collected."""

    is_cancelled = False

    def __init__(self, lease: Lease | Troupe, request: Generate, done: Callable[[], object]) -> None:
        self.text = ""
        self.error: Exception | None = None
        self.lease = lease
        _, self._generation = lease.begin(request)
        self._done = done

    def rows(self) -> Sequence[Any]:
        return self._generation.rows()

    def unread(self) -> Any:
        return self._generation.unread()

    def steps(self) -> Iterator["Future[Any] | None"]:
        try:
            for events in self._generation.steps():
                self.text += "".join(event.text for event in events if isinstance(event, Delta))
                yield self._generation.awaited()
        except HubError as error:
            self.error = error

    def refuse(self, error: Exception) -> None:
        self.error = error

    def close(self) -> None:
        self.lease.release()
        self._done()


def submitted(leases: Sequence[Lease | Troupe], requests: Sequence[Generate]) -> list[Collecting]:
    """Requests that were there at the same time, done."""
    done = threading.Semaphore(0)
    scheduler = Scheduler(turn_s=0.0)
    works = [Collecting(lease, request, done.release) for lease, request in zip(leases, requests, strict=True)]
    for work in works:
        scheduler.submit(work.lease.base, work.lease.variant, work)
    scheduler.start()
    for _ in works:
        assert done.acquire(timeout=60)
    return works


def texts(leases: Sequence[Lease | Troupe], requests: Sequence[Generate]) -> list[str]:
    """What the scheduler makes of requests that are there at the same time."""
    works = submitted(leases, requests)
    assert [work.error for work in works] == [None] * len(works)
    return [work.text for work in works]


def by_transformers(model: Any, prompt: str, count: int) -> str:
    tokenizer = models.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=count, do_sample=False, pad_token_id=models.END)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
