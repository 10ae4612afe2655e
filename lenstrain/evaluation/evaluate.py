"""The function behind `lenstrain evaluate`: scores in; metrics, tables, figures, report out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lenstrain.evaluation.options import EvaluationOptions as EvaluationOptions

Progress = Callable[[str, float], None]
"""Called with the name of the stage that begins and the share of the work done before it."""


def evaluate(
    scores: Path,
    out: Path,
    *,
    calibrate_on: Path | None = None,
    dataset: str | Path | None = None,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a table of scores and write the report.

    Parameters
    ----------
    scores : path
        Parquet or CSV with key, label, logit (or probability) and region_id.
    out : path
        Folder to write. An earlier evaluation there is replaced whole; any other non-empty
        folder is refused. Nothing appears there if the evaluation fails.
    calibrate_on : path, optional
        Scores of another split: calibration and thresholds are fitted there.
    dataset : path or s3 URI, optional
        Where to read example stamps; default: the dataset named in the scores' metadata.
    options : EvaluationOptions, optional
        Settings; the defaults if None.
    progress : callable, optional
        Told the name of each stage and the share of work done, from 0 to 1.

    Returns
    -------
    dict
        The content of metrics.json, with ``report`` (path of the page) added.

    Raises
    ------
    ScoresError
        If a table is unusable, or `out` is a folder that is not an evaluation.
    ConfigError
        If an option is out of range.
    """
    raise NotImplementedError
