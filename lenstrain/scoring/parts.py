"""Finished parts of a table of scores, kept next to it until all are there and then joined."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.errors import ConfigError, DatasetError, InputError, StorageError
from lensprep.store import Store, Uri, is_remote, join_uri, open_store, split_uri, uri_suffix
from lensprep.tables.writer import table_writer

_PLAN = "plan.json"


class FinishedParts:
    """The folder ``.NAME.parts`` next to a table, on a disk or in an object store.

    Parameters
    ----------
    out : str or path
        The table.
    """

    def __init__(self, out: Uri) -> None:
        parent, name = split_uri(out)
        self._out, self._folder = out, open_store(join_uri(parent, f".{name}.parts"))

    def begin(self, plan: dict[str, Any], parts: int) -> list[int]:
        """Make the folder, or reuse that of the same plan; return the parts that are finished."""
        text = json.dumps(plan, sort_keys=True).encode()
        if not self._folder.has(_PLAN) or self._folder.read(_PLAN) != text:
            self.remove()
        self._folder.write(_PLAN, text)
        found = {entry.name for entry in self._folder.entries("part-")}
        return [index for index in range(parts) if _part_file(index) in found]

    def write(self, index: int, table: pa.Table, rejects: pa.Table | None) -> None:
        """Keep a part, which is finished once its table is there."""
        if rejects is not None and rejects.num_rows:
            _write(self._folder, f"part-{index:06d}.rejects", rejects)
        _write(self._folder, _part_file(index), table)

    def leave(self) -> None:
        """Keep what is finished for another try; remove the folder if nothing is."""
        with suppress(StorageError):  # the error that ended the run says more
            if not any(e.name.endswith(".parquet") for e in self._folder.entries("part-")):
                self.remove()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        for entry in self._folder.entries():
            self._folder.delete(entry.name)
        if not is_remote(self._folder.uri):
            shutil.rmtree(self._folder.uri, ignore_errors=True)

    def join(self, parts: int, facts: dict[str, Any], remedy: str) -> dict[str, Any]:
        """Join the parts in order, each row once, and write the table.

        Parameters
        ----------
        parts : int
            How many there must be.
        facts : dict
            Metadata of the table.
        remedy : str
            End of the message if one is missing.

        Returns
        -------
        dict
            ``rows``, ``filtered`` and ``rejected`` (by reason), ``rejects`` (path of the table of
            these rows, or None).

        Raises
        ------
        ConfigError
            If a part is missing.
        DatasetError
            If a dataset has two rows of one key.
        InputError
            If no row has a score.
        """
        folder = self._folder
        found = {entry.name for entry in folder.entries("part-")}
        files = [_part_file(index) for index in range(parts)]
        missing = [name for name in files if name not in found]
        if missing:
            raise ConfigError(f"{folder.uri} lacks {missing[0]}. {remedy}")
        first = _first_of_each_key(folder, files)
        repeats = int(sum((~kept).sum() for kept in first))
        if repeats and facts["source"]["kind"] != "tree":
            raise DatasetError(f"{facts['dataset']}: {repeats} rows repeat an earlier key.")
        rejects = _rejects(folder, sorted(found - set(files)), files, first)
        account = _account(int(sum(kept.sum() for kept in first)), rejects)
        if not account["rows"]:
            of = f" of split {facts['split']!r}" if facts["split"] else ""
            reasons = account["filtered"] | account["rejected"]
            why = ", ".join(f"{name} {count:,}" for name, count in reasons.items()) or "no rows"
            if rejects is not None and "detail" in rejects.column_names:  # of cutouts
                first_row = rejects.slice(0, 1).to_pylist()[0]
                where = first_row["source_file"] or first_row["task_id"]
                why += f" (first: {where}, {first_row['detail']})"
            raise InputError(f"{facts['dataset']} has no stamp{of} to score: {why}.")
        schema = _read(folder, files[0]).schema.remove_metadata()
        # Part by part, so that memory does not grow with the table.
        with table_writer(self._out, schema, facts | {"account": account}) as write:
            for file, kept in zip(files, first, strict=True):
                table = _read(folder, file)
                write(table if kept.all() else table.filter(pa.array(kept)))
        parent, name = split_uri(self._out)
        beside = f"{name[: -len(uri_suffix(name))]}.rejects.parquet"
        if rejects is not None and rejects.num_rows:
            _write(open_store(parent), beside, rejects)
            return account | {"rejects": join_uri(parent, beside)}
        open_store(parent).delete(beside)
        return account | {"rejects": None}


def _part_file(index: int) -> str:
    return f"part-{index:06d}.parquet"


def _read(folder: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(folder.read(name)), columns=columns)


def _write(folder: Store, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write(name, sink.getvalue().to_pybytes())


def _first_of_each_key(folder: Store, files: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Which rows of each part have a key that did not come before."""
    columns = [_read(folder, file, ["key"])["key"] for file in files]
    keys = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    first = np.ones(len(keys), bool)
    if pc.count_distinct(keys).as_py() < len(keys):
        codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
        first[:] = False
        first[np.unique(codes, return_index=True)[1]] = True
    return np.split(first, np.cumsum([len(column) for column in columns])[:-1])


def _rejects(
    folder: Store, named: Sequence[str], files: Sequence[str], first: Sequence[NDArray[np.bool_]]
) -> pa.Table | None:
    """Rows without a score: those that could not be decoded, and duplicates."""
    tables = [_read(folder, name) for name in named]
    for file, kept in zip(files, first, strict=True):
        if not kept.all():
            again = _read(folder, file).filter(pa.array(~kept))
            again = again.select(["task_id", "source_file", "source_row_group", "source_row"])
            for name, value in (("kind", "rejected"), ("reason", "duplicate_row")):
                again = again.append_column(name, pa.array([value] * again.num_rows))
            tables.append(again)
    return pa.concat_tables(tables, promote_options="default") if tables else None


def _account(rows: int, rejects: pa.Table | None) -> dict[str, Any]:
    kinds: dict[str, Counter[str]] = {"filtered": Counter(), "rejected": Counter()}
    if rejects is not None:
        pairs = zip(rejects["kind"].to_pylist(), rejects["reason"].to_pylist(), strict=True)
        for kind, reason in pairs:
            kinds[kind][reason] += 1
    return {"rows": rows} | {kind: dict(sorted(found.items())) for kind, found in kinds.items()}
