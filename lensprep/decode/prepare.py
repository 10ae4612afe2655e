"""One batch of source rows -> finished records, their sidecar rows, and the rows left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.dataset.geometry import DECALS, Geometry
from lensprep.dataset.layout import JSON_MEMBERS, KIND, MEASURED, ORIGIN, SIMULATED, SPLITS
from lensprep.dataset.record import encode_json, payload_crc32, payload_view, set_json, set_keys
from lensprep.decode.account import UNLABELLED, Account, row_classes
from lensprep.decode.normalize import Measured, Normalizer
from lensprep.decode.placement import PLACE, row_key, row_place
from lensprep.decode.reasons import RejectReason
from lensprep.source.contract import (
    FILTER_REASONS,
    FilterRules,
    Labels,
    filter_rows,
    label_rows,
    user_cuts,
)
from lensprep.source.survey import DECALS_SURVEY, SPLIT_COLUMN, Survey

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


CUTOUT_REJECT_SCHEMA = REJECT_SCHEMA.append(pa.field("detail", pa.string()))
"""The same where catalogues are among the sources: ``detail`` is what was found in a file."""

BLOB_ROWS = 32
"""Blobs decoded at a time, `Geometry.scaled_rows`: pixels (1.5 MB) and records stay in the cache
until they are float16."""


Decode = Callable[[NDArray[np.intp], NDArray[np.float32]], Sequence[str | None]]


class Piece(NamedTuple):
    """A few rows whose pixels are decoded when they are needed."""

    rows: int
    """At most ``BLOB_ROWS``."""
    decode: Decode
    """Puts the pixels of some of these rows into an array, and gives the reason of each that has
    none."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The result of one batch of source rows."""

    records: NDArray[np.uint8]
    """Records of the accepted rows, shape (rows, stride): the start of the space given."""
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

    The seed is that of the placement, the rules are the user's cuts; the stamps have the geometry
    of the normalizer.
    """

    def __init__(
        self,
        seed: int,
        rules: FilterRules,
        normalizer: Normalizer,
        survey: Survey = DECALS_SURVEY,
    ) -> None:
        self._seed, self._rules, self._normalizer = seed, rules, normalizer
        self._survey = survey
        self.geometry = normalizer.geometry
        rows = self.geometry.scaled_rows(BLOB_ROWS)
        self._pixels = np.empty((rows, *self.geometry.shape), np.float32)
        self.account = Account()

    def __call__(
        self,
        table: pa.Table,
        pieces: Iterable[Piece],
        records: NDArray[np.uint8],
        labels: Labels | None = None,
        source: str | None = None,
    ) -> Prepared:
        """Prepare one batch.

        Parameters
        ----------
        table : pyarrow.Table
            Scalar columns of the source rows, with the ``source_*`` columns.
        pieces : iterable of Piece
            Their pixels.
        records : ndarray of uint8, shape (n, stride)
            Space for at least as many records, made by `lensprep.dataset.record.new_records`.
        labels : Labels, optional
            What a catalogue says of its rows; of a tree its columns say it.
        source : str, optional
            What their source is called, where the account is by source too.
        """
        cut = self._cuts(table, labels)
        labels = labels or label_rows(table, self._survey)
        reason = _light_reasons(table, cut, labels.reason)
        texts = _json_members(table, labels.label, reason)
        first, used = 0, 0
        stamps: list[_Stamps] = []
        for piece in pieces:
            stop = first + piece.rows
            found = self._stamps(piece, reason[first:stop], records[used:])
            stamps.append(found)
            found.rows[:] += first
            first, used = stop, used + len(found.rows)
        records, rows = records[:used], np.concatenate([s.rows for s in stamps])
        side = self._sidecar(table, labels.label, rows, stamps)
        set_keys(records, side["key"].to_pylist(), self.geometry)
        set_json(records, [texts[row] for row in rows], self.geometry)
        splits = [s if s in SPLITS else UNLABELLED for s in table[SPLIT_COLUMN].to_pylist()]
        classes = row_classes(table, labels.label).tolist()
        self.account.add(splits, classes, reason.tolist())
        if source is not None:
            self.account.add_sources(source, *origins_and_kinds(table), reason.tolist())
        return Prepared(records, side, _left_out(table, reason, classes))

    def _stamps(
        self,
        piece: Piece,
        reason: NDArray[np.object_],
        records: NDArray[np.uint8],
    ) -> _Stamps:
        """Decode, normalise and hash the rows that have no reason yet; others may get one."""
        rows = np.flatnonzero(reason == "")
        pixels = self._pixels[: len(rows)]
        rejects = piece.decode(rows, pixels)
        bad = [i for i, reject in enumerate(rejects) if reject is not None]
        if bad:
            reason[rows[bad]] = [str(rejects[i]) for i in bad]
            good = np.setdiff1d(np.arange(len(rows)), bad)
            rows, pixels = rows[good], pixels[good]
        payload = payload_view(records[: len(rows)], self.geometry)
        measured = self._normalizer(pixels, payload)
        if measured.constant.any():
            reason[rows[measured.constant]] = RejectReason.CONSTANT_BAND.value
            kept = np.flatnonzero(~measured.constant)
            records[: len(kept)] = records[kept]
            rows, pixels, measured = rows[kept], pixels[kept], measured.take(kept)
        hashes = [xxhash.xxh3_128_hexdigest(stamp) for stamp in pixels]
        return _Stamps(rows, hashes, measured, payload_crc32(records[: len(rows)], self.geometry))

    def _cuts(self, table: pa.Table, labels: Labels | None) -> NDArray[np.str_]:
        """Why rows are filtered; a catalogue has none of the columns that say it for trees."""
        if labels is not None:
            return user_cuts(table, self._rules)
        return filter_rows(table, self._rules, self._survey)

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
        columns |= measured_columns([s.measured for s in stamps], self.geometry)
        columns["pixel_hash"] = pa.array(hashes, pa.string())
        columns |= {name: light[name] for name in light.column_names}
        columns["payload_crc32"] = pa.array(np.concatenate([s.crc for s in stamps]))
        return pa.table(columns)


def _light_reasons(
    table: pa.Table, cut: NDArray[np.str_], label_reason: NDArray[np.str_]
) -> NDArray[np.object_]:
    """Why rows are left out by their light columns: the user's cuts come before defects."""
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


def origins_and_kinds(table: pa.Table) -> tuple[list[str], list[str]]:
    """Origin and kind of each row as the account has them."""
    return (
        table[ORIGIN].fill_null(SIMULATED).to_pylist(),
        table[KIND].fill_null(UNLABELLED).to_pylist(),
    )


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


def measured_columns(
    stamps: Sequence[Measured], geometry: Geometry = DECALS
) -> dict[str, pa.Array]:
    """What normalising measured, as columns of the sidecar."""
    columns = {}
    for name in MEASURED:
        values = np.concatenate([getattr(measured, name) for measured in stamps])
        for number, column in enumerate(geometry.band_columns(name)):
            columns[column] = pa.array(values[:, number], pa.float32())
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
    path: str, split: str | None, group: int, rows: int, reason: RejectReason, first: int = 0
) -> pa.Table:
    """Rows of a row group left out whole, as in ``rejects.parquet``, as far as they are known.

    ``first`` is the number that ``source_row`` gives the first of them.
    """
    return reject_table(
        rows,
        {
            "region_split": pa.array([split] * rows, pa.string()),
            "class": [UNLABELLED] * rows,
            "kind": ["rejected"] * rows,
            "reason": [reason.value] * rows,
            "source_file": [path] * rows,
            "source_row_group": [group] * rows,
            "source_row": np.arange(first, first + rows),
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
