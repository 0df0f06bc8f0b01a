"""How much host memory is free: whether another copy of a state may be made while an older one waits for the disk.

    has_room_for(200_000_000)            # True: it takes at most half of what is free

It reads what Linux tells of the machine and of the container. Elsewhere nobody tells, and a gigabyte counts as free.
"""

from __future__ import annotations

from pathlib import Path

_UNKNOWN = 1e9  # bytes
_SYSTEM = Path("/proc/meminfo")
_GROUPS = [  # of a container: its limit, what it takes, and the line of memory.stat that could be given back
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
     "total_inactive_file"),
]


def has_room_for(size: float) -> bool:
    """Whether ``size`` bytes are at most half of what is free: a process that takes more than there is gets killed, and no
    error can be caught."""
    return 2 * size <= free_memory()


def free_memory() -> float:
    """Bytes that this process can still take."""
    known = [value for value in (_of_machine(), *(_of_container(*files) for files in _GROUPS)) if value is not None]
    return min(known, default=_UNKNOWN)


def _of_machine():
    kilobytes = _number_behind("MemAvailable:", _SYSTEM)
    return None if kilobytes is None else 1024 * kilobytes


def _of_container(limit, taken, reclaimable):
    """None where there is no container, or one without a limit."""
    try:
        most, now = int(limit.read_text()), int(taken.read_text())
    except (OSError, ValueError):  # "max"
        return None
    return max(most - now + (_number_behind(reclaimable, limit.with_name("memory.stat")) or 0), 0)


def _number_behind(name, path):
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((float(words[1]) for words in map(str.split, lines) if words[:1] == [name] and len(words) > 1), None)
