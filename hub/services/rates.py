"""How fast this hub merges, as its latest merges went: what estimates of time are made with."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, select

from adapterhub.hub.db.tables import Job
from adapterhub.merging.explain import STATED, Rate

LOOKED_AT = 50
"""Latest merges that are looked at."""
LEAST_BYTES = 32 << 20
"""What a merge has to read and write for its time to tell a rate: below, starting and committing are most of it."""


def measured(session: Session, kind: str, methods: Mapping[str, int]) -> Rate:
    """The rate of the latest jobs of that kind whose result has `work`: by the same methods, else by any; else STATED.

    methods: of the merge whose time is wanted, as `explain.explained` counts them.
    """
    ended = select(Job.result).where(Job.kind == kind, Job.state == "succeeded")
    rows = session.exec(ended.order_by(col(Job.finished_at).desc()).limit(LOOKED_AT)).all()
    done = [work for row in rows if (work := _work(row)) is not None]
    alike = [work for work in done if set(work["methods"]) == set(methods)]
    if alike:
        return _rate(alike, "by the same methods")
    return _rate(done, "by other methods") if done else STATED


def _work(result: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a job says of its work; None where it says nothing, or did too little to tell a rate."""
    work = (result or {}).get("work")
    is_telling = isinstance(work, dict) and work["bytes"] >= LEAST_BYTES and work["seconds"] > 0
    return work if is_telling else None


def _rate(done: Sequence[Mapping[str, Any]], how: str) -> Rate:
    bytes_per_s = sum(work["bytes"] for work in done) / sum(work["seconds"] for work in done)
    count = "the last merge" if len(done) == 1 else f"the last {len(done)} merges"
    return Rate(bytes_per_s, f"measured: {bytes_per_s / 1e6:.0f} MB/s in {count} here {how}")
