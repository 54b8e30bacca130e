"""What another hub has just refused, so that it is not asked the same at every read: kept in memory, for a while.

The answer to one asker says nothing about another: refusals are kept by organisation.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

from adapterhub.hub.context import Hub
from adapterhub.hub.errors import HubError, NotFound, OutboundFailed, Refused, RevisionNotFound, TooLarge
from adapterhub.hub.services.upstream import Upstream

KEPT = 10_000
"""Most refusals that are remembered; the oldest go first."""

RETRY_S = 30
"""How soon another hub is asked again that did not answer."""


clock = time.monotonic
"""Seconds that only grow."""


class _Key(NamedTuple):
    data: str
    url: str
    repo_id: str
    organisation_id: str
    revision: str


@dataclass
class _Refusals:
    lock: Lock = field(default_factory=Lock)
    found: "OrderedDict[_Key, tuple[float, HubError]]" = field(default_factory=OrderedDict)

    def get(self, key: _Key) -> HubError | None:
        with self.lock:
            until, error = self.found.get(key, (0.0, None))
            return error if until > clock() else None

    def put(self, key: _Key, error: HubError, ttl_s: float) -> None:
        with self.lock:
            self.found.pop(key, None)
            self.found[key] = clock() + ttl_s, error
            while len(self.found) > KEPT:
                self.found.popitem(last=False)

    def drop(self, unwanted: Callable[[_Key], bool]) -> None:
        with self.lock:
            for key in [one for one in self.found if unwanted(one)]:
                del self.found[key]


_refusals = _Refusals()


@contextmanager
def remembered(hub: Hub, upstream: Upstream, revision: str) -> Iterator[None]:
    """Ask inside; what is refused is remembered. Raises at once what was raised just now, if it was."""
    for about in ("", revision):
        error = _refusals.get(_key(hub, upstream, about))
        if error is not None:
            raise _afresh(error)
    try:
        yield
    except (NotFound, Refused, TooLarge, OutboundFailed) as error:
        longest_s = hub.settings.mirror_missing_ttl_s
        ttl_s = min(longest_s, RETRY_S) if isinstance(error, OutboundFailed) else longest_s
        about = revision if isinstance(error, RevisionNotFound) else ""
        if ttl_s > 0:
            _refusals.put(_key(hub, upstream, about), _afresh(error), ttl_s)
        raise


def _afresh(error: HubError) -> HubError:
    """The same error without its traceback, whose frames would be kept with all that they hold."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    return twin


def forget(hub: Hub, repo_id: str) -> None:
    """Ask about that repository again, whoever asks."""
    data, name = str(hub.settings.data), repo_id.casefold()
    _refusals.drop(lambda key: (key.data, key.repo_id) == (data, name))


def forget_organisation(hub: Hub, organisation_id: str) -> None:
    """Ask again in the name of that organisation."""
    data = str(hub.settings.data)
    _refusals.drop(lambda key: (key.data, key.organisation_id) == (data, organisation_id))


def _key(hub: Hub, upstream: Upstream, about: str) -> _Key:
    name = upstream.repo_id.casefold()
    return _Key(str(hub.settings.data), upstream.url, name, upstream.organisation_id or "", about)
