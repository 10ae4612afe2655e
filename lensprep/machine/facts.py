"""Versions and extras, processors and memory: what the system says, and what a container leaves."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from lensprep import __version__
from lensprep.checks.finding import Finding
from lensprep.engine import default_workers
from lensprep.errors import size_text
from lensprep.extras import EXTRAS, REQUIRED, install_hint
from lensprep.machine.findings import judged, passed

_GROUPS: Final = Path("/sys/fs/cgroup")
_LEAST_MEMORY: Final = 4e9
"""Bytes. With less, workers or torch are killed on real data."""
_BUSY: Final = 0.5
"""Load of others, as a share of the processors, that falsifies what is measured."""


class Limits(NamedTuple):
    """What the control groups of a container or a batch system leave to this process."""

    cores: float | None
    """Processors' worth of time; None if it is not limited."""
    memory_bytes: int | None


def group_limits(own: str, root: Path = _GROUPS) -> Limits:
    """The smallest limits among the control groups that a process is in.

    Parameters
    ----------
    own : str
        What ``/proc/self/cgroup`` holds.
    root : Path
        Where the groups are mounted.
    """
    cores, memory = list[float](), list[int]()
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree; version 1 one for each controller, and no maximum is a large one.
        tree = root / controllers
        for folder in (group := tree / path.strip("/"), *group.parents):
            if not folder.is_relative_to(tree):
                break
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            quota = quota or _read(folder / "cpu.cfs_quota_us")
            period = period or _read(folder / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit():
                cores.append(int(quota) / int(period))
            for name in ("memory.max", "memory.limit_in_bytes"):
                if (most := _read(folder / name)).isdigit() and int(most) < 1 << 60:
                    memory.append(int(most))
    return Limits(min(cores, default=None), min(memory, default=None))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def find_versions() -> tuple[dict[str, str], dict[str, bool]]:
    """Versions of Python and all packages that the distribution uses, and which extras are whole.

    Read from the metadata of the installed packages; nothing is imported.
    """
    packages = metadata.packages_distributions()
    found = {"lensprep": __version__, "python": platform.python_version()}
    for module in (*REQUIRED, *(module for modules in EXTRAS.values() for module in modules)):
        if module in packages:
            found[module] = metadata.version(packages[module][0])
    return found, {extra: {*modules} <= {*found} for extra, modules in EXTRAS.items()}


def find_machine() -> tuple[dict[str, Any], list[Finding]]:
    """Processors and memory as numbers, and what is to be said of them.

    Returns
    -------
    dict
        ``host``, ``system``, ``cores`` (that this process may use), ``cores_limit`` (of the
        container, or None), ``load`` (processes that ran in the last minute), ``memory_bytes``,
        ``memory_limit_bytes``, ``memory_available_bytes`` (or None).
    list of Finding
    """
    limits = group_limits(_read(Path("/proc/self/cgroup")))
    cores, load = default_workers(), os.getloadavg()[0]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = limits.memory_bytes if limits.memory_bytes and limits.memory_bytes < total else None
    findings = []
    if limits.cores is not None and limits.cores < cores:
        findings.append(judged(
            "cores", "warn", limits.cores,
            f"{cores} processors are seen, but the container may use only {limits.cores:g} of "
            f"their time. Give --workers {max(1, int(limits.cores))} to lensprep, and set "
            f"OMP_NUM_THREADS={max(1, int(limits.cores))} for lenstrain.",
        ))  # fmt: skip
    if load > _BUSY * cores:
        findings.append(judged(
            "load", "warn", load,
            f"Other work asks for {load:.1f} processors, and there are {cores}: all rates here are "
            "lower than on an idle machine. Measure again when it is over.",
        ))  # fmt: skip
    if min(limit or total, total) < _LEAST_MEMORY:
        findings.append(judged(
            "memory", "warn", limit or total,
            f"There are {size_text(limit or total)} of memory. Use fewer --workers, a smaller "
            "data.batch_size and data.memory_budget_gb, or a larger machine.",
        ))  # fmt: skip
    machine = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": cores,
        "cores_limit": limits.cores,
        "load": load,
        "memory_bytes": total,
        "memory_limit_bytes": limit,
        "memory_available_bytes": _available(limit),
    }
    return machine, findings or [passed("machine", "Processors and memory suffice.")]


def _available(limit: int | None) -> int | None:
    """Memory that new work can have, at most what the container has in all."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
            return free if limit is None else min(free, limit)
    return None


def extras_findings(versions: dict[str, str], needed: tuple[str, ...]) -> list[Finding]:
    """A problem for every extra that is needed and not whole, by the first module that it lacks."""
    lacking = {
        extra: [module for module in EXTRAS[extra] if module not in versions] for extra in needed
    }
    return [
        judged("extras", "blocker", extra, str(install_hint(modules[0])))
        for extra, modules in lacking.items()
        if modules
    ]
