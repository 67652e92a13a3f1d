"""What this machine has to give: processor cores and memory, also inside a container."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

PEAK = 3_000_000_000  # bytes: what a lesson needs at most, with its kernel
CGROUPS = Path("/sys/fs/cgroup")  # the limits of a container, on Linux
OWN_CGROUP = Path("/proc/self/cgroup")


def jobs() -> int:
    """How many lessons fit side by side: one for each core, if memory allows; at least one."""
    return max(1, min(cores(), available_memory() // PEAK))


def cores() -> int:
    """The cores that this process may use: no more than its affinity and its container allow."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    count = len(allowed(0)) if allowed else os.cpu_count() or 1
    for folder in _cgroups("cpu"):
        quota, period = _quota(folder)
        if quota and period and quota > 0:
            count = min(count, quota // period)
    return max(1, count)


def available_memory() -> int:
    """Bytes that programs can still take: those of the machine, or of its tightest container."""
    left = [psutil.virtual_memory().available]
    for folder in _cgroups("memory"):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is None:  # version 1 has other names
            limit = _number(folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(limit - used + _reclaimable(folder))
    return max(0, min(left))


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, innermost first."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = CGROUPS / controller if names else CGROUPS
        group = root / path.lstrip("/")
        # A container sees itself as the root, under whatever path its host knows it.
        yield group
        yield from (folder for folder in group.parents if folder.is_relative_to(root))


def _quota(folder: Path) -> tuple[int | None, int | None]:
    """The processor time that a control group gets, per period, both in microseconds."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return (None, None) if quota == "max" else (int(quota), int(period))
    except (OSError, ValueError):
        return _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files that count as used and are given up when a program asks for them."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    stat = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)


def _number(path: Path) -> int | None:
    """The number in a file; nothing if there is no file, or "max" in it."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
