"""Whether the guarantee of a threshold chosen on some scores holds for others."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lenstrain.evaluation.scores import Scores

_TRAINING = "train"


@dataclass(frozen=True)
class CalibrationSplit:
    """The scores on which thresholds and calibration were fitted, and what they share."""

    scores: str
    scores_sha256: str
    split: str | None
    """The split that the table names; None if it names none."""
    n_negative: int
    n_negative_unique: int
    n_regions: int
    trained_on: bool | None
    """Whether it holds rows of the training split; None if the table names no split."""
    shared_keys: int
    shared_images: int
    shared_regions: int

    @property
    def reasons(self) -> list[str]:
        """Why nothing chosen there is guaranteed for these scores; empty if it is."""
        found = []
        if self.trained_on:
            found.append("the finder was trained on the calibration split")
        if self.shared_keys:
            found.append(f"{self.shared_keys:,} stamps are in the judged scores too")
        elif self.shared_images:
            found.append(f"{self.shared_images:,} images are in the judged scores too")
        if self.shared_regions:
            found.append(f"{self.shared_regions:,} regions are in the judged scores too")
        return found

    def to_entry(self) -> dict[str, Any]:
        """Entry ``calibration_split`` of metrics.json."""
        reasons = self.reasons
        return asdict(self) | {"independent": not reasons, "reasons": reasons}


def judge_calibration_split(scores: Scores, reference: Scores) -> CalibrationSplit:
    """Compare the scores that are judged with `reference`, on which thresholds are chosen.

    The result says what they share, by key, image and region, and whether `reference` is stated to
    hold rows of the split that networks are trained on.
    """
    splits = _splits(reference)
    columns = ["key", "region_id"]
    if scores.has("pixel_hash") and reference.has("pixel_hash"):
        columns.append("pixel_hash")
    with ThreadPoolExecutor(len(columns)) as pool:
        counts = pool.map(partial(_shared, scores, reference), columns)
        shared = dict(zip(columns, counts, strict=True))
    return CalibrationSplit(
        scores=str(reference.path),
        scores_sha256=reference.sha256,
        split=", ".join(sorted(splits)) or None,
        n_negative=reference.curve.n_negative,
        n_negative_unique=reference.n_negative_unique,
        n_regions=reference.n_regions,
        trained_on=_TRAINING in splits if splits else None,
        shared_keys=shared["key"],
        shared_images=shared.get("pixel_hash", 0),
        shared_regions=shared["region_id"],
    )


def _splits(table: Scores) -> set[str]:
    named = {str(table.metadata["split"])} if table.metadata.get("split") else set()
    if table.has("split"):
        named |= {str(value) for value in table.table["split"].unique().to_pylist() if value}
    return named


def _shared(one: Scores, other: Scores, column: str) -> int:
    """Distinct values that are in both tables; null is none."""
    ours, theirs = one.table[column], other.table[column]
    if ours.type != theirs.type:
        ours, theirs = ours.cast(pa.string()), theirs.cast(pa.string())
    both = ours.filter(pc.is_in(ours, value_set=theirs.drop_null()))
    return int(pc.count_distinct(both, mode="only_valid").as_py())
