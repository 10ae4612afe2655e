"""Check of the loader: every row of an epoch exactly once over all processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import Outcome
from lenstrain.data import StampLoader
from lenstrain.data.stream import PlanSteps
from lenstrain.pages.page import listed

Step = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions in the split, and their weights; weight 0 is a filler."""

BATCH = 64


def check_loader_coverage(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Run an epoch of the training split with different numbers of processes; count the rows."""
    rows = evidence.dataset.split("train").rows
    really = rows <= config.run.read_rows
    faults: list[str] = []
    steps: dict[str, int] = {}
    for world_size in config.run.world_sizes:
        ranks = [
            list(epoch_steps(evidence.dataset.uri, rank, world_size, config.seed, really))
            for rank in range(world_size)
        ]
        found = coverage_faults(ranks, rows)
        faults += [f"{world_size} processes: {fault}" for fault in found]
        steps[str(world_size)] = len(ranks[0])
    how = "read" if really else "planned"
    return Outcome(
        passed=not faults,
        measured={"rows": rows, "steps": steps, "faults": faults, "how": how},
        threshold="each row once, equal steps on every process",
        detail=f"{'; '.join(faults[:3])}." if faults
        else f"{rows:,} rows come exactly once each on {listed(config.run.world_sizes)} processes; "
        f"the epoch was {how}.",
    )  # fmt: skip


def epoch_steps(uri: str, rank: int, world_size: int, seed: int, really: bool) -> Iterable[Step]:
    """One process's steps of an epoch, read with their pixels or only planned."""
    loader = StampLoader(uri, "train", BATCH, seed, rank=rank, world_size=world_size)
    try:
        if really:
            for batch in loader:
                yield batch.index.numpy(), batch.weight.numpy()
            return
        stages = loader.pipeline().pipeline
        plan = next(stage for stage in stages if isinstance(stage, PlanSteps))
        for step in plan.run():
            yield step.index, step.weight
    finally:
        loader.close()


def coverage_faults(ranks: list[list[Step]], rows: int) -> list[str]:
    """What is wrong with an epoch: rows that are missing or repeated, unequal steps.

    Parameters
    ----------
    ranks : list of list of (index, weight)
        The steps of each process.
    rows : int
        Rows that must come exactly once.
    """
    faults = []
    steps = {len(steps) for steps in ranks}
    if len(steps) > 1:
        faults.append(f"processes take {min(steps)} to {max(steps)} steps and would wait for ever")
    seen = np.zeros(rows, np.int64)
    outside = 0
    for one in ranks:
        for index, weight in one:
            counted = index[weight > 0]
            inside = (counted >= 0) & (counted < rows)
            outside += int(np.count_nonzero(~inside))
            np.add.at(seen, counted[inside], 1)
    missing, repeated = int((seen == 0).sum()), int((seen > 1).sum())
    if missing:
        faults.append(f"{missing} rows never come")
    if repeated:
        faults.append(f"{repeated} rows come more than once")
    if outside:
        faults.append(f"{outside} positions lie outside the split")
    return faults
