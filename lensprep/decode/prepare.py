"""One batch of source rows -> finished records, their sidecar rows, and the rows left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, JSON_MEMBERS, MEASURED, SPLITS, STAMP_SHAPE
from lensprep.dataset.record import encode_json, payload_crc32, payload_view, set_json, set_keys
from lensprep.decode.account import UNLABELLED, Account, row_classes
from lensprep.decode.normalize import Measured, Normalizer
from lensprep.decode.placement import PLACE, row_key, row_place
from lensprep.decode.reasons import DAMAGE, RejectReason
from lensprep.decode.stampnpz import decode_batch
from lensprep.source.contract import FILTER_REASONS, FilterRules, filter_rows, label_rows
from lensprep.source.survey import SPLIT_COLUMN

REJECT_SCHEMA = pa.schema(
    [
        ("task_id", pa.string()),
        ("region_split", pa.string()),
        ("region_id", pa.int32()),
        ("lens_model", pa.string()),
        ("class", pa.string()),
        ("kind", pa.string()),
        ("reason", pa.string()),
        ("source_file", pa.string()),
        ("source_row_group", pa.int32()),
        ("source_row", pa.int64()),
    ]
)
"""Columns of ``rejects.parquet``; ``kind`` is ``filtered`` or ``rejected``."""


BLOB_ROWS = 32
"""Blobs decoded at a time: pixels (1.5 MB) and records stay in the cache until they are float16."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of one batch of source rows."""

    records: NDArray[np.uint8]
    """Records of the accepted rows, shape (rows, RECORD_STRIDE): the start of the space given."""
    table: pa.Table
    """Their sidecar rows, with ``place``."""
    left_out: pa.Table
    """The other rows, as in ``rejects.parquet``."""


@dataclass(frozen=True, slots=True)
class _Stamps:
    """The accepted stamps of a few source rows."""

    rows: NDArray[np.intp]
    """Their row numbers in the batch."""
    hashes: list[str]
    measured: Measured
    crc: NDArray[np.uint32]


class Preparer:
    """Turns batches of source rows into records, and keeps their account.

    The seed is that of the placement, the rules are the user's cuts.
    """

    def __init__(self, seed: int, rules: FilterRules, normalizer: Normalizer) -> None:
        self._seed, self._rules, self._normalizer = seed, rules, normalizer
        self._pixels = np.empty((BLOB_ROWS, *STAMP_SHAPE), np.float32)
        self.account = Account()

    def __call__(
        self,
        table: pa.Table,
        blobs: Iterable[pa.ChunkedArray],
        records: NDArray[np.uint8],
        again: Callable[[], pa.ChunkedArray | None] | None = None,
    ) -> Prepared:
        """Prepare one batch.

        Parameters
        ----------
        table : pyarrow.Table
            Scalar columns of the source rows, with the ``source_*`` columns.
        blobs : iterable of pyarrow.ChunkedArray
            Their ``stamp_npz``, at most ``BLOB_ROWS`` at a time.
        records : ndarray of uint8, shape (n, RECORD_STRIDE)
            Space for at least as many records, made by `lensprep.dataset.record.new_records`.
        again : callable, optional
            Reads the last blobs a second time; None if that cannot give others.
        """
        labels = label_rows(table)
        reason = self._light_reasons(table, labels.reason)
        texts = _json_members(table, labels.label, reason)
        first, used = 0, 0
        stamps: list[_Stamps] = []
        for few in blobs:
            stop = first + len(few)
            found = self._stamps(few, reason[first:stop], records[used:], again)
            stamps.append(found)
            found.rows[:] += first
            first, used = stop, used + len(found.rows)
        records, rows = records[:used], np.concatenate([s.rows for s in stamps])
        side = self._sidecar(table, labels.label, rows, stamps)
        set_keys(records, side["key"].to_pylist())
        set_json(records, [texts[row] for row in rows])
        splits = [s if s in SPLITS else UNLABELLED for s in table[SPLIT_COLUMN].to_pylist()]
        classes = row_classes(table, labels.label).tolist()
        self.account.add(splits, classes, reason.tolist())
        return Prepared(records, side, _left_out(table, reason, classes))

    def _stamps(
        self,
        blobs: pa.ChunkedArray,
        reason: NDArray[np.object_],
        records: NDArray[np.uint8],
        again: Callable[[], pa.ChunkedArray | None] | None,
    ) -> _Stamps:
        """Decode, normalise and hash the rows that have no reason yet; others may get one."""
        rows = np.flatnonzero(reason == "")
        pixels = self._pixels[: len(rows)]
        rejects = decode_batch(_taken(blobs, rows), pixels)
        if again is not None and not DAMAGE.isdisjoint(rejects) and (fresh := again()) is not None:
            rejects = decode_batch(_taken(fresh, rows), pixels)
        bad = [i for i, reject in enumerate(rejects) if reject is not None]
        if bad:
            reason[rows[bad]] = [str(rejects[i]) for i in bad]
            good = np.setdiff1d(np.arange(len(rows)), bad)
            rows, pixels = rows[good], pixels[good]
        measured = self._normalizer(pixels, payload_view(records[: len(rows)]))
        if measured.constant.any():
            reason[rows[measured.constant]] = RejectReason.CONSTANT_BAND.value
            kept = np.flatnonzero(~measured.constant)
            records[: len(kept)] = records[kept]
            rows, pixels, measured = rows[kept], pixels[kept], measured.take(kept)
        hashes = [xxhash.xxh3_128_hexdigest(stamp) for stamp in pixels]
        return _Stamps(rows, hashes, measured, payload_crc32(records[: len(rows)]))

    def _light_reasons(
        self, table: pa.Table, label_reason: NDArray[np.str_]
    ) -> NDArray[np.object_]:
        """Why rows are left out by their light columns: the user's cuts come before defects."""
        cut = filter_rows(table, self._rules)
        no_split = pc.invert(pc.is_in(table[SPLIT_COLUMN], pa.array(SPLITS))).to_numpy()
        no_region = table["region_id"].is_null().to_numpy()
        reason = np.select(
            [cut != "", label_reason != "", no_split, no_region],
            [
                cut,
                label_reason,
                RejectReason.UNKNOWN_SPLIT.value,
                RejectReason.MISSING_REGION.value,
            ],
            "",
        )
        return reason.astype(object)

    def _sidecar(
        self,
        table: pa.Table,
        label: NDArray[np.int8],
        rows: NDArray[np.intp],
        stamps: Sequence[_Stamps],
    ) -> pa.Table:
        """Scalar columns of the accepted rows, with key, place, label and what was measured."""
        light = table if len(rows) == table.num_rows else table.take(pa.array(rows))
        hashes = [pixel_hash for s in stamps for pixel_hash in s.hashes]
        pairs = zip(light["task_id"].to_pylist(), hashes, strict=True)
        keys = [row_key(task_id, pixel_hash) for task_id, pixel_hash in pairs]
        places = [row_place(self._seed, key) for key in keys]
        columns: dict[str, Any] = {
            "key": pa.array(keys, pa.string()),
            PLACE: pa.array(places, pa.uint64()),
            "label": pa.array(label[rows], pa.int8()),
        }
        columns |= measured_columns([s.measured for s in stamps])
        columns["pixel_hash"] = pa.array(hashes, pa.string())
        columns |= {name: light[name] for name in light.column_names}
        columns["payload_crc32"] = pa.array(np.concatenate([s.crc for s in stamps]))
        return pa.table(columns)


def _taken(blobs: pa.ChunkedArray, rows: NDArray[np.intp]) -> pa.ChunkedArray:
    return blobs if len(rows) == len(blobs) else blobs.take(pa.array(rows))


def _json_members(
    table: pa.Table, label: NDArray[np.int8], reason: NDArray[np.object_]
) -> list[bytes]:
    """JSON member of every row; a row whose text is too long gets its reason."""
    columns = {name: table[name].to_pylist() for name in JSON_MEMBERS if name in table.column_names}
    columns |= {"label": label.tolist(), "split": table[SPLIT_COLUMN].to_pylist()}
    members = encode_json(columns)
    for row, member in enumerate(members):
        if member is None and reason[row] == "":
            reason[row] = RejectReason.LONG_METADATA.value
    return [member or b"" for member in members]


def measured_columns(stamps: Sequence[Measured]) -> dict[str, pa.Array]:
    """What normalising measured, as columns of the sidecar."""
    columns = {}
    for name in MEASURED:
        values = np.concatenate([getattr(measured, name) for measured in stamps])
        for number, band in enumerate(BANDS):
            columns[f"{name}_{band}"] = pa.array(values[:, number], pa.float32())
    return columns


def reject_table(rows: int, known: Mapping[str, Any]) -> pa.Table:
    """A table with the columns of ``rejects.parquet``; those that are not known are null."""
    columns = [known.get(field.name, pa.nulls(rows, field.type)) for field in REJECT_SCHEMA]
    return pa.table(columns, REJECT_SCHEMA.names).cast(REJECT_SCHEMA)


def _left_out(table: pa.Table, reason: NDArray[np.object_], classes: list[str]) -> pa.Table:
    """Rows that have a reason, as in ``rejects.parquet``."""
    rows = np.flatnonzero(reason != "")
    if not len(rows):
        return REJECT_SCHEMA.empty_table()
    names = [name for name in REJECT_SCHEMA.names if name in table.column_names]
    known = {name: table[name].take(pa.array(rows)) for name in names}
    known["class"] = [classes[row] for row in rows]
    known["reason"] = reason[rows]
    known["kind"] = ["filtered" if r in FILTER_REASONS else "rejected" for r in reason[rows]]
    return reject_table(len(rows), known)


def unreadable_rows(
    path: str, split: str | None, group: int, rows: int, reason: RejectReason
) -> pa.Table:
    """Rows of a row group left out whole, as in ``rejects.parquet``, as far as they are known."""
    return reject_table(
        rows,
        {
            "region_split": pa.array([split] * rows, pa.string()),
            "class": [UNLABELLED] * rows,
            "kind": ["rejected"] * rows,
            "reason": [reason.value] * rows,
            "source_file": [path] * rows,
            "source_row_group": [group] * rows,
            "source_row": np.arange(rows),
        },
    )


def duplicate_rows(dropped: pa.Table) -> pa.Table:
    """Sidecar rows of duplicate records, as in ``rejects.parquet``."""
    rows = dropped.num_rows
    known = {name: dropped[name] for name in dropped.column_names}
    known["class"] = row_classes(dropped, dropped["label"].to_numpy())
    known["kind"] = ["rejected"] * rows
    known["reason"] = [RejectReason.DUPLICATE_ROW.value] * rows
    return reject_table(rows, known)
