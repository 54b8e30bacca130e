"""How many threads a process may compute with. Never imports torch."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def threads_of(configured: int, cgroup: Path = _CGROUP) -> int:
    """The number of torch threads: `configured`, or for 0 half of the cores this process may use, at least one.

    Half, because the web process and the jobs compute at the same time, and threads that wait for a core they do not
    get are far slower than fewer threads: 2 threads on 2 contended cores decoded 24 times slower than one.
    """
    return configured or max(1, int(usable_cores(cgroup) / 2))


def usable_cores(cgroup: Path = _CGROUP) -> float:
    """Cores that this process may use: its affinity, and the quota of its control group where that is less."""
    # macOS has no affinity
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min((float(allowed), *(quota / period for quota, period in _quotas(cgroup))))


def _quotas(cgroup: Path) -> list[tuple[float, float]]:
    """(quota, period) in microseconds, of version 2 ("max" for none) and version 1 (-1 for none)."""
    texts = [
        _text(cgroup / "cpu.max").split(),
        [_text(cgroup / "cpu" / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")],
    ]
    return [(float(pair[0]), float(pair[1])) for pair in texts if len(pair) == 2 and pair[0].isdigit()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
