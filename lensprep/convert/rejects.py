"""Rows left out: their share while a conversion runs, and `rejects.parquet`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lensprep.convert.config import ConvertConfig
from lensprep.convert.workfolder import Work
from lensprep.decode.account import Account
from lensprep.decode.reasons import RejectReason
from lensprep.errors import BudgetError
from lensprep.source.catalog import CutoutSource
from lensprep.source.tree import Source
from lensprep.store import atomic_writer


def check_rejects(
    account: Account, source: Source, config: ConvertConfig, work: Work, *, final: bool = False
) -> None:
    """Raise BudgetError once too many rows are rejected or, at the end, if none was accepted."""
    summary, rows, limit = account.summary(), source.rows, config.max_reject_rate
    rejected = sum(summary["rejected"].values())
    if rejected > limit * rows:
        least = "" if final else "at least "
        twice = RejectReason.DUPLICATE_ROW in summary["rejected"]
        # Only trees are checked; of catalogues the message must say what there is to say.
        lists = "" if isinstance(source, CutoutSource) else (
            f" `lensprep check {source.uri} --rejects FILE.csv` lists them all"
            f"{' but duplicates' * twice}."
        )  # fmt: skip
        raise BudgetError(
            f"{source.uri}: {least}{rejected:,} of {rows:,} rows are rejected "
            f"({_counts(summary['rejected'])}), more than --max-reject-rate {limit:g}; nothing is "
            f"committed. The first: {'; '.join(_first_rejected(work))}.{lists} To leave them out, "
            "run the same command again with a higher rate; finished work is kept."
        )
    if final and not summary["accepted"]:
        reasons = _counts({**summary["filtered"], **summary["rejected"]})
        raise BudgetError(
            f"None of {rows:,} rows was accepted ({reasons}); there is nothing to commit. If a cut "
            "of yours is the cause, change it and run the same command again."
        )


def _first_rejected(work: Work, most: int = 3) -> list[str]:
    """Where the first rejected rows are, each with its reason."""
    rows = (
        f"{_where(row)}: {row['reason']}"
        for table in work.left_out()
        for row in table.filter(pc.field("kind") == "rejected").to_pylist()
    )
    return list(islice(rows, most))


def _where(row: Mapping[str, Any]) -> str:
    if row.get("detail") is not None:  # of a catalogue
        return f"{row['source_file']}, row {row['source_row'] + 1} ({row['detail']})"
    return f"{row['source_file']}, row group {row['source_row_group']}, row {row['source_row']}"


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {rows:,}" for name, rows in reasons.items())


def write_rejects(path: Path, work: Work, schema: pa.Schema) -> None:
    """Write the rows left out in the order of the source, then the duplicates."""
    with (
        atomic_writer(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for table in work.left_out():
            if table.schema.names != schema.names:  # of a tree, beside catalogues
                table = pa.concat_tables([schema.empty_table(), table], promote_options="default")
            writer.write_table(table)
