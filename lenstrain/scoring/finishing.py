"""The last steps of a scored part: its logits are checked, joined with its columns, and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensprep.errors import CheckpointError, DatasetError, ShardError
from lensprep.store import Uri
from lenstrain.networks.ensemble import Ensemble
from lenstrain.scoring.origins import Origin, Part
from lenstrain.scoring.parts import FinishedParts

FIRST_COLUMNS = ("key", "task_id", "label", "logit", "region_id", "split")
"""Columns that every scores table begins with; the source's others follow."""


@dataclass(frozen=True, slots=True)
class Finisher:
    """What it takes to finish the parts of an origin."""

    finished: FinishedParts
    origin: Origin
    model: Ensemble
    checkpoints: Sequence[Uri]
    """Of the members of the model."""

    def finish(
        self, part: Part, scored: Callable[[], Sequence[Tensor]], columns: Future[pa.Table]
    ) -> None:
        """Write a part.

        Parameters
        ----------
        part : Part
            All of its batches have been used.
        scored : callable
            Waits for, and gives, logits (rows, members) and the embeddings (rows, features) of
            each member, if they are kept, on the CPU.
        columns : Future
            Of the same rows.

        Raises
        ------
        CheckpointError, ShardError
            If a logit is not finite, by whether weights or pixels are the cause.
        DatasetError
            If there are more or fewer rows than the part has.
        """
        logit_RM, *features = [value.numpy() for value in scored()]
        light = columns.result()
        self._require_finite(part.index, light, logit_RM)
        table = with_scores(light, self.origin.split, logit_RM, features)
        stated = self.origin.parts[part.index]
        if part.rejects is None and table.num_rows != stated:  # of a tree some have no stamp
            raise DatasetError(
                f"{table.num_rows} rows were scored where the manifest states {stated}."
            )
        self.finished.write(part.index, table, part.rejects)

    def _require_finite(self, index: int, light: pa.Table, logit_RM: NDArray[np.float32]) -> None:
        """Refuse logits that are not finite, and say whether pixels or weights are the cause.

        It is a ShardError if the first such stamp has pixels that are not finite, else a
        CheckpointError.
        """
        broken_RM = ~np.isfinite(logit_RM)
        if not broken_RM.any():
            return
        row, member = np.argwhere(broken_RM)[0].tolist()
        name = f"stamp {light['key'][row]} of {self.origin.facts['dataset']}"
        if not torch.isfinite(self._stamp(index, row)).all():
            raise ShardError(
                f"The pixels of {name} are not finite. `lensprep verify` finds damaged shards."
            )
        weights = self.model.members[member].state_dict().values()
        sound = all(value.isfinite().all() for value in weights)
        raise CheckpointError(
            f"{self.checkpoints[member]} gives logits that are not finite for "
            f"{broken_RM[:, member].sum()} of {len(logit_RM)} stamps. The pixels of the first, "
            f"{name}, are finite, and its weights "
            + ("are too: numbers overflow." if sound else "are not: its training has diverged.")
            + " Use an earlier checkpoint."
        )

    def _stamp(self, index: int, row: int) -> Tensor:
        """Pixels of one row of a part, read again."""
        parts = self.origin.read([index])  # held: it ends when nothing refers to it
        for pixels in next(parts).batches:
            if row < len(pixels):
                return pixels[row].clone()
            row -= len(pixels)
        raise DatasetError(f"{self.origin.facts['dataset']} has become smaller while it was read.")


def with_scores(
    light: pa.Table,
    split: str | None,
    logit_RM: NDArray[np.float32],
    features: Sequence[NDArray[np.float32]],
) -> pa.Table:
    """Columns of the source with the logits, in the order of columns that readers rely on."""
    rows, members = logit_RM.shape
    if light.num_rows != rows:
        raise DatasetError(f"{rows} stamps came with {light.num_rows} rows of columns.")
    columns: dict[str, Any] = {name: light[name] for name in light.column_names}
    columns["logit"] = pa.array(logit_RM.mean(axis=1, dtype=np.float64), pa.float32())
    columns["split"] = pa.array([split] * rows, pa.string())
    if members > 1:
        columns |= {f"logit_{m}": pa.array(logit_RM[:, m], pa.float32()) for m in range(members)}
    for m, vector in enumerate(features):
        name = "embedding" if members == 1 else f"embedding_{m}"
        flat = pa.array(vector.ravel(), pa.float32())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, vector.shape[1])
    rest = [name for name in columns if name not in FIRST_COLUMNS]
    return pa.table({name: columns[name] for name in (*FIRST_COLUMNS, *rest)})
