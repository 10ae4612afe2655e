"""Check of the logits: score a sample of the stamps again and compare."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.evaluation.scores import Scores
from lenstrain.networks.ensemble import D4Mean
from lenstrain.probes.scoring import TOLERANCE, Scorer
from lenstrain.training.checkpoint import load_finder

CONFIDENCE: Final = 0.95


def check_rescored(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Logits of a sample of rows, scored again with the best checkpoint on the CPU.

    In float32, whatever the table's precision: that is the number that others round, and in another
    order than a CPU would. So much rounding is tolerated as that precision explains.
    """
    scores = evidence.scores
    members = scores.metadata.get("members") or [{}]
    if len(members) > 1:
        raise NotRunError(
            f"{scores.path} holds mean logits of {len(members)} checkpoints: score again with "
            "this run's best.pt alone."
        )
    split = str(scores.metadata.get("split", "test"))
    keys = evidence.sidecar(split, ["key"], everything=True)["key"]
    table, logits = scores.everything
    rows, position = sample_rows(scores, keys, config.scores.rescored_rows, config.seed)
    model, _, _ = load_finder(evidence.checkpoint_path, "cpu")
    scorer = Scorer(D4Mean(model) if scores.metadata.get("tta") else model)
    again = scorer(evidence.dataset.read_pixels(split, position))
    precision = scores.precision or "float32"
    allowed = TOLERANCE.get(precision, max(TOLERANCE.values()))
    stated = logits[rows]
    difference = np.abs(again - stated)
    wrong = np.flatnonzero(difference > allowed * np.maximum(1.0, np.abs(again)))
    if len(wrong):
        one = int(wrong[0])
        key = table["key"][int(rows[one])].as_py()
        text = f", such as {key}: {stated[one]:.4f}, scored again {again[one]:.4f}."
    else:
        share = 1.0 - (1.0 - CONFIDENCE) ** (1.0 / len(rows))
        text = (f", but for rounding ({precision}). If {share:.1%} of the rows had been changed, "
                f"this would have been found with {CONFIDENCE:.0%} probability.")  # fmt: skip
    return Outcome(
        passed=not len(wrong),
        measured={"rows": len(rows), "differing": len(wrong), "precision": precision,
                  "largest_difference": float(difference.max())},
        threshold={"differing": 0, "tolerance": allowed},
        detail=f"{len(wrong) or 'None'} of {len(rows):,} logits differ from what best.pt gives "
        f"on this dataset{text}",
    )  # fmt: skip


def sample_rows(
    scores: Scores, keys: pa.ChunkedArray, rows: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `scores.everything`, drawn at random, and their positions in the split.

    Raises
    ------
    NotRunError
        If none is in the split.
    """
    rng = np.random.default_rng(seed)
    table = scores.everything.table
    chosen = np.sort(rng.choice(table.num_rows, min(rows, table.num_rows), replace=False))
    wanted = table["key"].take(pa.array(chosen)).cast(pa.string())
    found = pc.index_in(wanted, value_set=keys.cast(pa.string()))
    position = found.fill_null(-1).to_numpy().astype(np.int64)
    known = position >= 0
    if not known.any():
        raise NotRunError(f"No row of {scores.path} is in the split of this dataset.")
    return chosen[known], position[known]
