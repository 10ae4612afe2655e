"""Whether a calibration split is independent of the training and of the scores that are judged."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lenstrain.evaluation.scores import Scores
from lenstrain.tables import Uri


@dataclass(frozen=True)
class CalibrationSplit:
    """What thresholds and calibration were fitted on."""

    scores: Uri
    scores_sha256: str
    split: str | None
    n_negative: int
    n_negative_unique: int
    n_regions: int
    trained_on: bool | None
    """None: the table does not say of which split it is."""
    shared_keys: int
    shared_images: int
    shared_regions: int
    independent: bool
    reasons: list[str]
    """Why it is not."""


def judge_calibration_split(scores: Scores, reference: Scores) -> CalibrationSplit:
    """Judge the split that thresholds and calibration were fitted on.

    Parameters
    ----------
    scores : Scores
        The scores that are judged.
    reference : Scores
        The scores that thresholds and calibration were fitted on.
    """
    splits = set(reference.strings("split")) if reference.has("split") else set()
    named = reference.metadata.get("split")
    splits |= set() if named is None else {named}
    trained_on = "train" in splits if splits - {None} else None
    shared = {
        column: _shared(scores.table[column], reference.table[column])
        if scores.has(column) and reference.has(column)
        else 0
        for column in ("key", "pixel_hash", "region_id")
    }
    reasons = ["its rows were trained on"] if trained_on else []
    words = {"key": "stamps", "pixel_hash": "images", "region_id": "regions"}
    reasons += [f"it shares {n:,} {words[name]} with the scores" for name, n in shared.items() if n]
    return CalibrationSplit(
        scores=reference.path,
        scores_sha256=reference.sha256,
        split=named,
        n_negative=int((reference.labels == 0).sum()),
        n_negative_unique=reference.unique_negatives.size,
        n_regions=reference.n_regions,
        trained_on=trained_on,
        shared_keys=shared["key"],
        shared_images=shared["pixel_hash"],
        shared_regions=shared["region_id"],
        independent=not reasons,
        reasons=reasons,
    )


def _shared(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> int:
    """Distinct values that are in both columns."""
    ours, theirs = (column.drop_null().unique().cast(pa.string()) for column in (ours, theirs))
    return int(pc.sum(pc.is_in(ours, value_set=theirs)).as_py() or 0)
