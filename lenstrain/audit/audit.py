"""The function behind `lenstrain audit`: measure every item, decide, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from lensprep import __version__
from lensprep.checks.finding import Finding
from lensprep.configfile import to_mapping
from lensprep.dataset import Dataset, Geometry
from lensprep.dataset.absence import no_run
from lensprep.errors import ConfigError, ProjectError, StorageError
from lensprep.store import (
    Uri,
    check_folder,
    exists,
    is_remote,
    join_uri,
    local_file,
    local_folder,
    written_folder,
)
from lenstrain.audit.checklist import CHECKLIST, judged, run_item
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence, Supplied, check_supplied
from lenstrain.audit.finding import EXIT_CODES, NotRunError, Outcome, decide
from lenstrain.audit.report import write_report
from lenstrain.networks.weights import require_geometry
from lenstrain.pages.links import links_to
from lenstrain.pages.page import AUDIT_NAME, AUDIT_PAGE
from lenstrain.pages.places import add_link
from lenstrain.training.checkpoint import BEST
from lenstrain.training.runlog import CHECKPOINTS, CONFIG

Progress = Callable[[str, float], None]
"""Called with the item that begins and the share of the items done before it."""


def audit(
    run: Uri,
    dataset: Uri,
    out: Uri | None = None,
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
    run : str or path
        Run folder of `lenstrain train`; this and all other locations may be local or s3://.
    dataset : str or path
        The dataset it was trained on.
    out : str or path, optional
        Folder to write; ``audit`` in the run folder if not given. An earlier audit there is
        replaced whole; any other non-empty folder is refused.
    supplied : Supplied, optional
        Scores, evaluations and tables that do not lie where they are looked for.
    config : AuditConfig, optional
    run_checks : bool
        Also run the short trainings (minutes on a CPU).
    only : sequence of str, optional
        Items to measure; the others count as not run, so the verdict cannot be GO.
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
    CheckpointError
        If the run was trained on stamps of another survey, bands, side or scale.
    """
    config = config or AuditConfig()
    known = [item.name for item in CHECKLIST]
    for name in only:
        if name not in known:
            raise ConfigError(f"There is no item {name!r}. Known: {', '.join(known)}.")
    out = join_uri(run, "audit") if out is None else out
    if not exists(join_uri(run, CONFIG)):  # before a whole folder of another kind is copied
        raise StorageError(no_run(run))
    named = supplied or Supplied()
    with local_folder(run, wanted=is_looked_at) as folder, ExitStack() as copies:
        supplied = _here(named, copies)
        check_supplied(supplied)
        evidence = Evidence(folder, Dataset.open(dataset), supplied, run_checks, is_remote(run))
        check_stamps(evidence, str(run))
        check_folder(out, AUDIT_NAME)
        content, findings = _measure(evidence, str(run), config, only, progress)
        content["pages"] = pages = _pages(evidence, str(run), named)
    with written_folder(out, AUDIT_NAME) as draft:
        write_report(draft, content, findings, links_to(pages, out))
    add_link(pages.get("report"), "Audit", join_uri(out, AUDIT_PAGE))
    return content | {"report": join_uri(out, AUDIT_PAGE)}, findings


def is_looked_at(name: str) -> bool:
    """Whether a file of a remote run must be copied for the audit."""
    if name.startswith(f"{CHECKPOINTS}/"):
        return name == f"{CHECKPOINTS}/{BEST}"
    return not PurePosixPath(name).name.startswith("events.")


def _here(supplied: Supplied, copies: ExitStack) -> Supplied:
    """The same with local copies of remote folders; tables are read where they are."""
    local: dict[str, Uri] = {}
    for name in ("evaluation", "probe"):
        uri = getattr(supplied, name)
        if uri is not None and is_remote(uri):
            copy = local_file if str(uri).endswith(".json") else local_folder
            local[name] = copies.enter_context(copy(uri))
    return replace(supplied, **local)  # type: ignore[arg-type]


def _pages(evidence: Evidence, run: str, named: Supplied) -> dict[str, str]:
    """Where the pages of report and probes are, not where copies of them lie for the audit."""
    given = {"report": named.evaluation, "probe": named.probe}
    found: dict[str, str] = {}
    for name, page in evidence.pages.items():
        if (folder := given[name]) is None or not is_remote(folder):
            found[name] = str(page).replace(str(evidence.run), run)
        elif not str(folder).endswith(".json"):
            found[name] = join_uri(folder, page.name)
    return found


def check_stamps(evidence: Evidence, run: str) -> None:
    """Refuse a dataset of other stamps than the run was trained on, with CheckpointError."""
    try:
        content = evidence.checkpoint
    except ProjectError:
        return  # the items that need it say so
    dataset = evidence.dataset
    trained = Geometry.from_dict(content["geometry"])
    require_geometry(trained, dataset.geometry, run, dataset.uri)


def _measure(
    evidence: Evidence,
    run: str,
    config: AuditConfig,
    only: Sequence[str],
    progress: Progress | None,
) -> tuple[dict[str, Any], list[Finding]]:
    """Content of audit.json, and the findings; a local copy of the run is named as the run."""
    findings = []
    for number, item in enumerate(CHECKLIST):
        if progress is not None:
            progress(item.name, number / len(CHECKLIST))
        if only and item.name not in only:
            found = judged(item, Outcome(detail="Left out by --only."), config)
        else:
            found = run_item(item, evidence, config)
        remedy = found.remedy.replace("RUN", run).replace("DATASET", str(evidence.dataset.uri))
        detail = found.detail.replace(str(evidence.run), run)
        findings.append(replace(found, detail=detail, remedy=remedy))
    verdict = decide(findings)
    try:
        checkpoint: str | None = str(evidence.checkpoint_path).replace(str(evidence.run), run)
    except NotRunError:
        checkpoint = None
    content = {
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "purpose": config.purpose,
        "run": run,
        "checkpoint": checkpoint,
        "dataset": evidence.dataset.uri,
        "dataset_id": evidence.dataset.dataset_id,
        "digests": evidence.digests(),
        "findings": [finding.to_dict() for finding in findings],
        "config": to_mapping(config),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
    }
    return content, findings
