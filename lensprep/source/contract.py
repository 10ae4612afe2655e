"""The contract: whether a file has the survey's columns, which rows may be used (pure).

Nothing in a source is trusted that can be checked here: labels come from a closed map and are
checked against two other columns, and every row that is left out has a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK, LENSED
from lensprep.dataset.where import Where
from lensprep.source.survey import DECALS_SURVEY, LABEL_COLUMN, Survey

UNKNOWN_LABEL: Final = "unknown_label"
LABEL_CONFLICT: Final = "label_conflict"
MISSING_TASK_ID: Final = "missing_task_id"
INCOMPLETE_COUNTERFACTUAL: Final = "incomplete_counterfactual"
LABEL_REASONS: Final = (MISSING_TASK_ID, UNKNOWN_LABEL, LABEL_CONFLICT, INCOMPLETE_COUNTERFACTUAL)
"""Reasons to reject a row by its light columns, in the order in which they are checked."""

CUTOUT_NOT_OK: Final = "cutout_not_ok"
BANDSET_LACKS_BAND: Final = "bandset_lacks_band"
MAX_BAD_PIXEL_FRAC: Final = "max_bad_pixel_frac"
WHERE: Final = "where"
OVERLAP: Final = "overlap"
OTHER_GRADE: Final = "grade"
FILTER_REASONS: Final = (
    CUTOUT_NOT_OK,
    BANDSET_LACKS_BAND,
    MAX_BAD_PIXEL_FRAC,
    WHERE,
    OVERLAP,
    OTHER_GRADE,
)
"""Reasons to filter a row, in the order in which they are checked."""


def accepts(wanted: pa.DataType, found: pa.DataType, *, loose: bool = False) -> bool:
    """Whether a column stored as ``found`` can stand for a contract column of type ``wanted``.

    Integers and floating-point numbers may be of any width, text and bytes may be large, viewed
    or dictionary-encoded, and a column of nothing but nulls may have the null type. A float is
    never taken for an integer, nor a number for text, unless the contract is ``loose``, as that of
    any survey but Phase 4c: then whole numbers and bools stand for text, whole numbers for
    floating-point ones, and bools for whole numbers.
    """
    found = plain_type(found)
    if pa.types.is_null(found):
        return True
    if loose and pa.types.is_boolean(found):
        return bool(pa.types.is_string(wanted) or pa.types.is_integer(wanted))
    if loose and pa.types.is_integer(found):
        return not pa.types.is_binary(wanted)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    if pa.types.is_binary(wanted):
        return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found))
    return bool(pa.types.is_floating(found))


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type without views, encodings and extensions, which few readers can compute with.

    ``string_view`` becomes text, a ``dictionary`` its values, a UUID its 16 bytes; the same inside
    lists, structs and maps.
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


MISSING: Final = "is missing"


def schema_faults(
    schema: pa.Schema, stated: Collection[str] = (), survey: Survey = DECALS_SURVEY
) -> dict[str, str]:
    """What is wrong with the schema of one file, by column (`Survey.called`); empty if nothing is.

    A problem is `MISSING`, or such as "is string, not int32". The file may lack columns that its
    folder states (``region_split=train``), under their names here.
    """
    faults = {}
    types: dict[str, list[pa.DataType]] = {}
    for field in schema:
        types.setdefault(survey.public_name(field.name), []).append(field.type)
        if survey.is_hidden(field.name):
            faults[field.name] = (
                f"must have another name, since the survey takes {survey.columns[field.name]} for "
                "the column of this name"
            )
    for name, wanted in survey.type_by_name.items():
        found = types.get(name, [])
        if name in faults:
            continue
        called, is_required = survey.called(name), name in survey.required_columns
        can_go = not is_required and name not in (COUNTERFACTUAL, HOST_TASK, DONOR_TASK)
        if len(found) > 1:
            faults[called] = f"occurs {len(found)} times"
        elif found and not accepts(wanted, found[0], loose=not survey.is_phase4c):
            remedy = f" (leave it out with --drop-column {name})" if can_go else ""
            faults[called] = f"is {found[0]}, not {wanted}{remedy}"
        elif not found and is_required and name not in stated:
            faults[called] = MISSING
    return faults


class Labels(NamedTuple):
    """Labels of a table's rows, and why some have none."""

    label: NDArray[np.int8]
    """Shape (rows,): 0 non-lens, 1 lens, -1 where there is a reason."""
    reason: NDArray[np.str_]
    """Shape (rows,): "" or one of ``LABEL_REASONS``."""


def label_rows(table: pa.Table, survey: Survey = DECALS_SURVEY) -> Labels:
    """Label every row through the survey's closed map, or reject it.

    ``lens_model`` gives the label (CONTROL 0, SIE and SIS 1). Null or anything else is
    ``unknown_label``, never a positive. ``is_control`` must say the same and
    ``theta_e_arcsec`` must be zero for controls and positive for lenses; where either is null, NaN
    or disagrees, the row is ``label_conflict``. Without a task_id a row has no identity
    (``missing_task_id``). A survey other than Phase 4c need not have these two columns, and null or
    NaN in them says nothing; any other value must agree.

    A row with a ``counterfactual`` is one, whatever kind it names. It is a lens if the kind is
    ``lensed`` and a non-lens otherwise (else ``label_conflict``), and states its kind, host and
    donor (else ``incomplete_counterfactual``).

    Parameters
    ----------
    table : pyarrow.Table
        With task_id, lens_model, is_control and theta_e_arcsec; if there are counterfactuals, with
        their three columns. Other columns are ignored.
    survey : Survey
    """
    label = _lookup(
        table.column(LABEL_COLUMN), lambda name: survey.label_map.get(name or "", -1), np.int8
    )
    agrees = np.ones(table.num_rows, bool)
    for name in ("is_control", "theta_e_arcsec"):
        if survey.is_phase4c or name in table.column_names:
            values = numbers(table.column(name))
            if name == "is_control":
                same = values == np.where(label == 0, 1.0, 0.0)
            else:
                same = np.where(label == 0, values == 0, values > 0)
            agrees &= same | (np.isnan(values) & (not survey.is_phase4c))
    incomplete = np.zeros(table.num_rows, bool)
    if COUNTERFACTUAL in table.column_names:
        made = is_counterfactual(table)
        is_lensed = _lookup(table[COUNTERFACTUAL], lambda kind: kind == LENSED, bool)
        agrees &= ~made | (is_lensed == (label == 1))
        known = np.logical_and.reduce(
            [_has_text(table, name) for name in (COUNTERFACTUAL, HOST_TASK, DONOR_TASK)]
        )
        incomplete = made & ~known
    reason = np.select(
        [~_has_text(table, "task_id"), label < 0, ~agrees, incomplete], LABEL_REASONS, ""
    )
    return Labels(np.where(reason == "", label, -1).astype(np.int8), reason)


def is_counterfactual(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows are counterfactuals, shape (rows,): those that name a kind, even an empty one."""
    if COUNTERFACTUAL not in table.column_names:
        return np.zeros(table.num_rows, bool)
    return table[COUNTERFACTUAL].is_valid().to_numpy()


def _has_text(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """Where a column of text is there and neither null nor empty."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, bool)
    return numbers(pc.binary_length(table[name].cast(pa.string()))) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterRules:
    """Which rows the user leaves out on purpose: they count as filtered, not as rejected."""

    max_bad_pixel_frac: float | None = None
    """Largest ``bad_pixel_frac`` to keep; rows where it is null or NaN are then left out too."""
    where: Where | None = None
    """Rows to keep; rows for which it is null are left out, as in SQL."""


def filter_rows(
    table: pa.Table, rules: FilterRules | None = None, survey: Survey = DECALS_SURVEY
) -> NDArray[np.str_]:
    """Reason why each row is left out, or "".

    Two cuts are always made where the survey has the columns (as Phase 4c has), since upstream
    itself says that there is no stamp to use: ``cutout_ok`` is not 1 (null included), and
    ``bandset`` lacks one of the bands (``r``: the blob was never meant to have the others). A row
    whose bandset promises a band that the blob lacks is not filtered here: decoding it gives a
    reject. Where several cuts apply, the first of ``FILTER_REASONS`` is given.

    Parameters
    ----------
    table : pyarrow.Table
        With cutout_ok, bandset and what the rules look at.
    rules : FilterRules, optional
        Further cuts; without it only the two that are always made.
    survey : Survey

    Returns
    -------
    ndarray of str, shape (rows,)
        "" or one of ``FILTER_REASONS``.
    """
    rules = rules or FilterRules()
    cuts: dict[str, NDArray[np.bool_]] = {"": np.zeros(table.num_rows, bool)}
    if survey.is_phase4c or "cutout_ok" in table.column_names:
        cuts[CUTOUT_NOT_OK] = numbers(table.column("cutout_ok")) != 1
    if survey.is_phase4c or "bandset" in table.column_names:
        lacks = partial(_lacks_band, survey.geometry.bands)
        cuts[BANDSET_LACKS_BAND] = _lookup(table.column("bandset"), lacks, bool)
    if rules.max_bad_pixel_frac is not None:
        frac = numbers(table.column("bad_pixel_frac"))
        cuts[MAX_BAD_PIXEL_FRAC] = ~(frac <= rules.max_bad_pixel_frac)
    if rules.where is not None:
        cuts[WHERE] = ~rules.where.mask(table)
    return np.select(list(cuts.values()), list(cuts), "")


def user_cuts(table: pa.Table, rules: FilterRules) -> NDArray[np.str_]:
    """Reason why each row of a catalogue is left out by the user's cuts, or "".

    As `filter_rows`, but without the two cuts that are always made of trees; and a row whose
    ``bad_pixel_frac`` is not known, as that of most cutouts, is kept.
    """
    cuts = {}
    if rules.max_bad_pixel_frac is not None and "bad_pixel_frac" in table.column_names:
        cuts[MAX_BAD_PIXEL_FRAC] = numbers(table["bad_pixel_frac"]) > rules.max_bad_pixel_frac
    if rules.where is not None:
        cuts[WHERE] = ~rules.where.mask(table)
    return np.select(list(cuts.values()), list(cuts), "") if cuts else np.full(len(table), "")


def _lacks_band(bands: Sequence[str], bandset: str | None) -> bool:
    """Whether a bandset lacks a band; null means nothing until the blob is decoded."""
    return bandset is not None and not all(band in bandset for band in bands)


def _lookup(
    column: pa.ChunkedArray, function: Callable[[str | None], object], dtype: type
) -> NDArray[Any]:
    """Apply a function of text to a column that has few distinct values."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode(null_encoding="encode")
    values: NDArray[Any] = np.array([function(v) for v in encoded.dictionary.to_pylist()], dtype)
    return values[encoded.indices.to_numpy()]


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Values as float64 with NaN for null, so that no comparison with a null is ever true."""
    return column.cast(pa.float64(), safe=False).to_numpy()
