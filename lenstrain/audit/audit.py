"""The function behind `lenstrain audit`: measure every item, decide, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lensprep import __version__
from lensprep.configfile import to_mapping
from lensprep.errors import ConfigError
from lenstrain.audit.checklist import CHECKLIST, Item, run_item
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Supplied, open_evidence
from lenstrain.audit.finding import EXIT_CODES, Finding, NotRunError, decide
from lenstrain.audit.report import PAGE_NAME, write_report

Progress = Callable[[str, float], None]
"""Called with the item that begins and the share of the items done before it."""


def audit(
    run: Path,
    dataset: str | Path,
    out: Path | None = None,
    *,
    supplied: Supplied | None = None,
    config: AuditConfig | None = None,
    run_checks: bool = False,
    only: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Finding]]:
    """Audit a run.

    Parameters
    ----------
    run : Path
        Run folder of `lenstrain train`.
    dataset : str or path
        The dataset it was trained on.
    out : Path, optional
        Folder to write; ``audit`` in the run folder if not given.
    supplied : Supplied, optional
        Scores, evaluations and tables that do not lie where they are looked for.
    config : AuditConfig, optional
    run_checks : bool
        Also run the short trainings (minutes on a CPU).
    only : sequence of str, optional
        Items to measure; the others are "not run", so the verdict cannot be GO.
    progress : callable, optional

    Returns
    -------
    content : dict
        What audit.json holds: ``verdict``, ``exit_code``, ``findings``, ... with ``report`` (path
        of the page) added.
    findings : list of Finding

    Raises
    ------
    StorageError, DatasetError
        If the run or the dataset is not there.
    ConfigError
        If `only` names an item that is not on the list.
    """
    config = config or AuditConfig()
    _check_names(only)
    evidence = open_evidence(run, dataset, supplied, run_checks=run_checks)
    findings = []
    for number, item in enumerate(CHECKLIST):
        if progress is not None:
            progress(item.name, number / len(CHECKLIST))
        skipped = bool(only) and item.name not in only
        findings.append(_left(item) if skipped else run_item(item, evidence, config))
    verdict = decide(findings)
    try:
        checkpoint: str | None = str(evidence.checkpoint_path)
    except NotRunError:
        checkpoint = None
    content = {
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "purpose": config.purpose,
        "run": str(run),
        "checkpoint": checkpoint,
        "dataset": evidence.dataset.uri,
        "dataset_id": evidence.dataset.dataset_id,
        "findings": [finding.to_dict() for finding in findings],
        "config": to_mapping(config),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    out = run / "audit" if out is None else out
    write_report(out, content, findings)
    return content | {"report": str(out / PAGE_NAME)}, findings


def _left(item: Item) -> Finding:
    return Finding(
        item=item.name,
        group=item.group,
        severity=item.severity,
        passed=None,
        measured=None,
        threshold=None,
        detail="Left out by --only.",
    )


def _check_names(only: Sequence[str]) -> None:
    known = [item.name for item in CHECKLIST]
    for name in only:
        if name not in known:
            raise ConfigError(f"There is no item {name!r}. Known: {', '.join(known)}.")
