"""The Phase 4c contract: whether a file has the columns of the survey, which rows may go in (pure).

A source is trusted in nothing that this module can check: labels come from a closed map and are
checked against two other columns, and a row that is left out has a reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, LABEL_MAP
from lensprep.dataset.where import Where
from lensprep.source.survey import COLUMNS

UNKNOWN_LABEL: Final = "unknown_label"
LABEL_CONFLICT: Final = "label_conflict"
MISSING_TASK_ID: Final = "missing_task_id"
LABEL_REASONS: Final = (MISSING_TASK_ID, UNKNOWN_LABEL, LABEL_CONFLICT)
"""Reasons to reject a row by its light columns, in the order in which they are looked for."""

CUTOUT_NOT_OK: Final = "cutout_not_ok"
BANDSET_LACKS_BAND: Final = "bandset_lacks_band"
MAX_BAD_PIXEL_FRAC: Final = "max_bad_pixel_frac"
WHERE: Final = "where"
FILTER_REASONS: Final = (CUTOUT_NOT_OK, BANDSET_LACKS_BAND, MAX_BAD_PIXEL_FRAC, WHERE)
"""Reasons to filter a row, in the order in which they are looked for."""


def accepts(wanted: pa.DataType, found: pa.DataType) -> bool:
    """Whether a column stored as ``found`` can stand for a contract column of type ``wanted``.

    Integers and floating-point numbers may be of any width, text and bytes may be large, viewed
    or dictionary-encoded, and a column of nothing but nulls may have the null type. A float is
    never taken for an integer, nor a number for text.
    """
    found = plain_type(found)
    if pa.types.is_null(found):
        return True
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_binary(wanted):
        return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found))
    return bool(pa.types.is_floating(found))


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type without views, encodings and extensions, which few readers compute with.

    Text and bytes are no views (``string_view``), no value is an index (``dictionary``), a UUID is
    its 16 bytes; the same holds inside lists, structs and maps.
    """
    if pa.types.is_dictionary(found):
        return plain_type(found.value_type)
    if isinstance(found, pa.BaseExtensionType):
        return plain_type(found.storage_type)
    if pa.types.is_string_view(found):
        return pa.string()
    if pa.types.is_binary_view(found):
        return pa.binary()
    if pa.types.is_map(found):
        return pa.map_(plain_type(found.key_type), plain_type(found.item_type), found.keys_sorted)
    if not pa.types.is_nested(found):
        return found
    inner = [f.with_type(plain_type(f.type)) for f in map(found.field, range(found.num_fields))]
    if pa.types.is_struct(found):
        return pa.struct(inner)
    if pa.types.is_fixed_size_list(found):
        return pa.list_(inner[0], found.list_size)
    if pa.types.is_large_list(found):
        return pa.large_list(inner[0])
    if pa.types.is_list(found):
        return pa.list_(inner[0])
    return found


class SchemaFault(NamedTuple):
    """One thing wrong with the schema of one file."""

    column: str
    problem: str
    """Such as "is missing" or "is string, not int32"."""


def schema_faults(schema: pa.Schema, stated: Collection[str] = ()) -> list[SchemaFault]:
    """What keeps a file of this schema from being read; an empty list if nothing.

    Parameters
    ----------
    schema : pyarrow.Schema
        Schema of one file.
    stated : collection of str
        Columns that a folder states (``region_split=train``), which the file may lack.
    """
    faults = []
    for column in COLUMNS:
        indices = schema.get_all_field_indices(column.name)
        if len(indices) > 1:
            faults.append(SchemaFault(column.name, f"is there {len(indices)} times"))
        elif indices:
            found = schema.field(indices[0]).type
            if not accepts(column.type, found):
                faults.append(SchemaFault(column.name, f"is {found}, not {column.type}"))
        elif column.required and column.name not in stated:
            faults.append(SchemaFault(column.name, "is missing"))
    return faults


class Labels(NamedTuple):
    """Labels of a table's rows, and why some have none."""

    label: NDArray[np.int8]
    """Shape (rows,): 0 non-lens, 1 lens, -1 where there is a reason."""
    reason: NDArray[np.str_]
    """Shape (rows,): "" or one of ``LABEL_REASONS``."""


def label_rows(table: pa.Table) -> Labels:
    """Label every row through the closed map, or reject it.

    ``lens_model`` gives the label (CONTROL 0, SIE and SIS 1). Null or anything else is
    ``unknown_label``, never a positive. ``is_control`` must say the same and
    ``theta_e_arcsec`` must be zero for controls and positive for lenses; where either is null, NaN
    or disagrees, the row is ``label_conflict``. Without a task_id a row has no identity
    (``missing_task_id``).

    Parameters
    ----------
    table : pyarrow.Table
        With task_id, lens_model, is_control and theta_e_arcsec; other columns are ignored.
    """
    label = _mapped(table.column("lens_model"))
    is_control = _numbers(table.column("is_control"))
    theta_e = _numbers(table.column("theta_e_arcsec"))
    expected_control = np.where(label == 0, 1.0, 0.0)
    agrees = (is_control == expected_control) & np.where(label == 0, theta_e == 0, theta_e > 0)
    task_id = table.column("task_id")
    has_id = _flags(pc.greater(pc.binary_length(_plain(task_id)), 0))
    reason = np.select(
        [~has_id, label < 0, ~agrees], [MISSING_TASK_ID, UNKNOWN_LABEL, LABEL_CONFLICT], ""
    )
    return Labels(np.where(reason == "", label, -1).astype(np.int8), reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterRules:
    """Which rows the user leaves out on purpose; they are counted as filtered, not rejected."""

    max_bad_pixel_frac: float | None = None
    """Largest ``bad_pixel_frac`` to keep; rows where it is null or NaN are then left out too."""
    where: Where | None = None
    """Rows to keep; rows for which it is null are left out, as in SQL."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that `filter_rows` reads."""
        names = ["cutout_ok", "bandset"]
        if self.max_bad_pixel_frac is not None:
            names.append("bad_pixel_frac")
        if self.where is not None:
            names.extend(name for name in self.where.columns if name not in names)
        return tuple(names)


def filter_rows(table: pa.Table, rules: FilterRules | None = None) -> NDArray[np.str_]:
    """Reason why each row is left out, or "".

    Two cuts are always made, since upstream itself says that there is no stamp to use:
    ``cutout_ok`` is not 1 (null included), and ``bandset`` lacks one of the bands g, r, z (``r``:
    the blob was never meant to have the others). A row whose bandset promises a band that the blob
    lacks is not filtered here: decoding it gives a reject. Where several cuts apply the first of
    ``FILTER_REASONS`` is given.

    Parameters
    ----------
    table : pyarrow.Table
        With at least ``rules.columns``.
    rules : FilterRules, optional
        Further cuts; without it only the two that are always made.

    Returns
    -------
    ndarray of str, shape (rows,)
        "" or one of ``FILTER_REASONS``.
    """
    rules = rules or FilterRules()
    cuts = {
        CUTOUT_NOT_OK: _numbers(table.column("cutout_ok")) != 1,
        BANDSET_LACKS_BAND: _lacks_band(table.column("bandset")),
    }
    if rules.max_bad_pixel_frac is not None:
        frac = _numbers(table.column("bad_pixel_frac"))
        cuts[MAX_BAD_PIXEL_FRAC] = ~(frac <= rules.max_bad_pixel_frac)
    if rules.where is not None:
        cuts[WHERE] = ~rules.where.mask(table)
    return np.select(list(cuts.values()), list(cuts), "")


def _lacks_band(bandset: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Rows whose bandset is known and lacks a band; what null means, decoding will tell."""
    return _lookup(bandset, lambda text: text is not None and not set(BANDS) <= set(text), bool)


def _mapped(lens_model: pa.ChunkedArray) -> NDArray[np.int8]:
    """Label by the closed map, -1 where there is none."""
    return _lookup(lens_model, lambda name: LABEL_MAP.get(name, -1), np.int8)


def _lookup(column: pa.ChunkedArray, function, dtype):  # type: ignore[no-untyped-def]
    """Apply a function of text to a column that has few distinct values."""
    encoded = _plain(column).dictionary_encode(null_encoding="encode").combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # pragma: no cover - older pyarrow
        encoded = encoded.chunk(0)
    values = np.array([function(v) for v in encoded.dictionary.to_pylist()], dtype)
    if not len(values):
        return np.zeros(len(column), dtype)
    return values[encoded.indices.to_numpy(zero_copy_only=False)]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode a dictionary-encoded or null-typed text column."""
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Values as float64 with NaN for null, so that no comparison with a null is ever true."""
    return column.cast(pa.float64(), safe=False).to_numpy()


def _flags(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Booleans with False for null."""
    return pc.fill_null(column, False).to_numpy().astype(bool)


def count_reasons(reason: NDArray[np.str_]) -> Mapping[str, int]:
    """How often each reason occurs; rows without a reason are left out."""
    names, counts = np.unique(reason[reason != ""], return_counts=True)
    return {str(name): int(n) for name, n in zip(names, counts, strict=True)}
