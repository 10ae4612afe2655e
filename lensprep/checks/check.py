"""`lensprep check`: is this the data you think it is? Reads a source, returns findings, a verdict.

    report = check(source_or_uri, pixels=False)     -> CheckReport
    report.verdict                                  "ok", "warnings" or "failed"
    report.exit_code                                0, 0 or 1
    report.to_dict()                                one JSON object
    render_text(report)                             for a terminal (rich)

Without ``pixels`` only the light columns are read, not the blobs, so thousands of files take
minutes. "failed" means that a blocker did not pass: results from such data would be wrong, or
impossible to get. "warnings" are for a person to judge. The verdicts GO, CONDITIONAL and NO-GO
belong to `lenstrain audit`, which judges a finder and not its data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.text import Text

from lensprep.checks import leaks, rows, splits
from lensprep.checks.finding import Finding
from lensprep.checks.tally import Circumstances, Tally, tally_rows
from lensprep.decode.prepare import REJECT_SCHEMA
from lensprep.decode.rowgroup import left_out_rows
from lensprep.engine import default_workers, run_tasks
from lensprep.errors import InputError, SchemaError, count_text, size_text
from lensprep.source.footers import Progress, SourceFile
from lensprep.source.listing import Location
from lensprep.source.survey import DECALS_SURVEY, STAMP_COLUMN, Survey
from lensprep.source.tree import LEAVE_OUT, Source
from lensprep.store import S3Options
from lensprep.tables.writer import table_writer
from lensprep.texttable import TextTable

FINDERS: Final = (*rows.FINDERS, *splits.FINDERS, *leaks.FINDERS)
"""In the order in which a person reads what they find."""

Verdict = Literal["ok", "warnings", "failed"]

SAMPLE_ROWS: Final = 200_000
"""About this many rows are kept to look for columns that reveal the label."""

_IN_PROCESS_ROWS: Final = 50_000
"""Up to this many rows, one process is faster than starting others."""
_PIXELS_COST: Final = 50
"""A row with its stamp takes as long as this many without."""
_BATCH_ROWS: Final = 1024
"""Rows with blobs held at once, `Geometry.scaled_rows`: about 45 MB."""
_LIGHT_BATCH_ROWS: Final = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What was found in a source."""

    source: str
    digest: str
    """Digest of the listing, as in the manifest of a conversion."""
    files: int
    row_groups: int
    rows: int
    bytes: int
    pixels: bool
    """Whether stamps were decoded."""
    splits: dict[str, dict[str, Any]]
    """By split, without counterfactuals: rows, fraction, classes {"0", "1", "unknown"}, regions."""
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst finding that did not pass."""
        failed = {finding.severity for finding in self.findings if finding.passed is False}
        if "blocker" in failed:
            return "failed"
        return "warnings" if "warn" in failed else "ok"

    @property
    def exit_code(self) -> int:
        """Exit status of the command: 1 if a blocker failed, else 0."""
        return int(self.verdict == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        data = {name: getattr(self, name) for name in self.__slots__ if name != "findings"}
        findings = [finding.to_dict() for finding in self.findings]
        return {"verdict": self.verdict, **data, "findings": findings}


@dataclass(frozen=True, slots=True)
class _Task:
    """One file to count."""

    source: Source
    """With this file alone."""
    columns: Sequence[str]
    batch_rows: int
    sample_step: int
    pixels: bool
    rejects: bool

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.source.files[0].path


def check(
    source: Source | Location | Sequence[Location],
    *,
    pixels: bool = False,
    declared_fractions: Mapping[str, float] | None = None,
    rejects: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    options: S3Options | None = None,
    survey: Survey = DECALS_SURVEY,
) -> CheckReport:
    """Check a source.

    Parameters
    ----------
    source : Source, str or path, or a sequence of these
        Locations are opened with ``skip_bad_files``, so that every bad file is reported.
    pixels : bool
        Also decode every stamp: count those that cannot be decoded, and compare images.
    declared_fractions : mapping of str to float, optional
        Expected split fractions, such as {"train": 0.8, "val": 0.1, "test": 0.1}.
    rejects : str or path, optional
        Table to write, such as ``.csv`` or ``.parquet``: every row that conversion would leave out,
        with its reason, but for duplicates. Every stamp is decoded for it.
    workers : int, optional
        Processes; by default one for small sources, else one per processor.
    progress : callable, optional
        Called with (rows read, rows).
    options : S3Options, optional
        How to reach an object store.
    survey : Survey
        What the stamps and columns of locations are; a `Source` has its own.

    Raises
    ------
    InputError, SchemaError
        If the source cannot be opened at all: no such path, no parquet, a required column missing.
    """
    if not isinstance(source, Source):
        source = Source.open(source, skip_bad_files=True, options=options, survey=survey)
    if workers is None:
        cost = source.rows * (_PIXELS_COST if pixels or rejects else 1)
        workers = default_workers() if cost > _IN_PROCESS_ROWS else 1
    step = max(1, source.rows // SAMPLE_ROWS)
    columns = [name for name in source.schema.names if pixels or name != STAMP_COLUMN]
    scaled = source.survey.geometry.scaled_rows
    batch_rows = scaled(_BATCH_ROWS) if pixels else _LIGHT_BATCH_ROWS
    tasks = [
        _Task(
            replace(source, files=(file,)), columns, batch_rows, step, pixels, rejects is not None
        )
        for file in source.files
    ]
    tally, done = Tally(), 0
    with ExitStack() as stack:
        if rejects is not None:
            write = stack.enter_context(table_writer(rejects, REJECT_SCHEMA, {}, options))
        for found, counted, left_out in run_tasks(_tally_file, tasks, workers=workers):
            tally.merge(found)
            if left_out is not None:
                write(left_out)
            done += counted
            if progress is not None:
                progress(done, source.rows)
    about = Circumstances(source=source, pixels=pixels, declared=declared_fractions)
    return CheckReport(
        source=source.uri,
        digest=source.digest(),
        files=len(source.files),
        row_groups=source.row_groups,
        rows=source.rows,
        bytes=source.bytes,
        pixels=pixels,
        splits=_split_counts(tally),
        findings=(
            *(find(tally, about) for find in FINDERS),
            *([splits.find_families(tally)] if tally.kinds else []),
        ),
    )


def _tally_file(task: _Task) -> tuple[Tally, int, pa.Table | None]:
    """Count the rows of one file, and find those that conversion would leave out."""
    (file,) = task.source.files
    pieces = task.source.iter_file(file, task.columns, batch_rows=task.batch_rows)
    try:
        tally = _tally_pieces(task, pieces)
    except InputError:
        tally = _tally_groups(task, file)
    return tally, file.rows, left_out_rows(task.source, file) if task.rejects else None


def _tally_groups(task: _Task, file: SourceFile) -> Tally:
    """Count a file row group by row group; those that cannot be read are noted and skipped."""
    tally = Tally()
    for index, group in file.filled:
        pieces = task.source.iter_row_group(file, index, task.columns, batch_rows=task.batch_rows)
        try:
            found = _tally_pieces(task, pieces)
        except SchemaError as error:
            tally.misfits.append(str(error))
        except InputError as error:
            where = f"{file.path}, row group {index}"
            reason = str(error).removeprefix(where).removesuffix(LEAVE_OUT).strip(" .")
            tally.unread.append((where, group.rows, reason))
        else:
            tally.merge(found)
    return tally


def _tally_pieces(task: _Task, pieces: Iterable[pa.Table]) -> Tally:
    """Count pieces: all of them, or none if one cannot be read."""
    tally, survey = Tally(), task.source.survey
    for piece in pieces:
        tally.merge(
            tally_rows(piece, sample_step=task.sample_step, pixels=task.pixels, survey=survey)
        )
    return tally


def _split_counts(tally: Tally) -> dict[str, dict[str, Any]]:
    total = max(1, sum(tally.splits().values()))
    return {
        split: {
            "rows": rows,
            "fraction": rows / total,
            "classes": tally.classes(split),
            "regions": len({region for region, name in tally.regions if name == split}),
        }
        for split, rows in tally.splits().items()
    }


_MARKS: Final = {True: ("passed", "green"), None: ("-", "dim")}
_FAILED_STYLE: Final = {"blocker": "bold red", "warn": "yellow", "info": "cyan"}
_VERDICT_STYLE: Final = {"ok": "bold green", "warnings": "bold yellow", "failed": "bold red"}


def render_text(report: CheckReport) -> RenderableType:
    """The report for a terminal: counts, findings, verdict."""
    head = Text(
        f"{report.source}: {count_text(report.files, 'file')}, "
        f"{count_text(report.row_groups, 'row group')}, {count_text(report.rows, 'row')}, "
        f"{size_text(report.bytes)}"
    )
    verdict = Text("verdict: ")
    verdict.append(report.verdict, _VERDICT_STYLE[report.verdict])
    failed = [f for f in report.findings if f.passed is False]
    blockers = sum(finding.severity == "blocker" for finding in failed)
    verdict.append(
        f" ({count_text(blockers, 'blocker')}, {count_text(len(failed) - blockers, 'warning')})"
    )
    return Group(head, _split_table(report), _finding_table(report), verdict)


def _split_table(report: CheckReport) -> TextTable:
    families = (f.measured["rows"] for f in report.findings if f.item == splits.FAMILIES)
    made = next(families, None)
    table = TextTable(
        "split", "rows", "share", "non-lenses", "lenses", "unknown", "regions",
        *(["counterfactuals"] if made else []), spare=("share", "regions"),
    )  # fmt: skip
    for split, counts in report.splits.items():
        classes = counts["classes"]
        table.add(
            split,
            f"{counts['rows']:,}",
            f"{counts['fraction']:.1%}",
            *(f"{classes.get(name, 0):,}" for name in ("0", "1", "unknown")),
            f"{counts['regions']:,}",
            *([f"{sum(made.get(split, {}).values()):,}"] if made else []),
        )
    return table


def _finding_table(report: CheckReport) -> TextTable:
    table = TextTable("result", "item", "detail", left=("item",), prose="detail")
    for finding in report.findings:
        if finding.passed is False:
            mark = Text(finding.severity.upper(), _FAILED_STYLE[finding.severity])
        else:
            mark = Text(*_MARKS[finding.passed])
        table.add(mark, finding.item, finding.detail)
    return table
