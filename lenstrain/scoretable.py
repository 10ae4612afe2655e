"""The table of scores: its columns and metadata, read and checked in one place."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import special

from lensprep.dataset import DECALS, Geometry
from lensprep.dataset.layout import (
    COUNTERFACTUAL,
    COUNTERFACTUALS,
    DONOR_TASK,
    GRADE,
    HOST_TASK,
    KIND,
    ORIGIN,
    REAL,
    SIMULATED,
)
from lensprep.dataset.sidecar import is_counterfactual, read_origins
from lensprep.errors import NotFoundError, ScoresError
from lensprep.store import Uri
from lensprep.tables.columns import check_ids, to_floats
from lensprep.tables.formats import METADATA_KEY
from lensprep.tables.reader import TableFile, read_table, require_columns

_log = logging.getLogger("lenstrain.evaluation")

MAX_CLUSTERS = 10_000
"""With more regions than this, neighbouring numbers are drawn together (whole regions)."""

AXIS_COLUMNS = ("theta_e_arcsec", "psfsize_r", "psfdepth_r", "arc_snr", "src_dmag")
SOURCE_COLUMNS = (ORIGIN, KIND, GRADE)
"""Where a row comes from, what it is, and how sure that is; text, of which none is null."""
_FAMILY_COLUMNS = (COUNTERFACTUAL, HOST_TASK, DONOR_TASK)
_OTHER_COLUMNS = (
    "task_id", "split", "lens_model", "pixel_hash", "ra", "dec", *_FAMILY_COLUMNS, *SOURCE_COLUMNS
)  # fmt: skip
COLUMNS = (
    "key", "label", "logit", "probability", "region_id", *AXIS_COLUMNS, *_OTHER_COLUMNS
)  # fmt: skip
_TEXT_COLUMNS = (
    "key", "task_id", "split", "lens_model", "pixel_hash", *_FAMILY_COLUMNS, *SOURCE_COLUMNS
)  # fmt: skip
LOGIT = "logit or probability"
"""The column that is needed, of either name."""
_FEWEST = 20
"""Rows from which on logits that all lie in [0, 1] are no accident."""
_LEAST_LOGIT, _GREATEST_LOGIT = -745.0, 40.0
"""Beyond the logit of any probability in float64 that is neither 0 nor 1."""

Floats = NDArray[np.float64]
ScoresAre = Literal["probability", "logit"]


class Rows(NamedTuple):
    """Some rows of a file."""

    table: pa.Table
    logits: Floats


@dataclass(frozen=True, kw_only=True)
class SkyScores:
    """Scores with positions; labels are not needed.

    Counterfactuals are no independent images, so they are apart from the rows of the table.
    """

    path: Uri
    table: pa.Table
    """The columns that evaluation reads, in file order."""
    logits: Floats
    metadata: dict[str, Any]
    """What `lenstrain infer` wrote: checkpoint, dataset_id, normalization, ...; {} elsewhere."""
    names: tuple[str, ...] = ()
    """All headings of the file."""
    sha256: str
    """Digest of the file."""
    notes: tuple[str, ...] = ()
    """What a reader of the results must know."""
    counterfactuals: Rows | None = None
    """In file order, with the columns of `table`; None if the file has none."""
    file_rows: NDArray[np.int64] | None = None
    """Row of the file for each row of the table; None if the table is the whole file."""

    def in_file(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the file for some rows of the table."""
        return rows if self.file_rows is None else self.file_rows[rows]

    @property
    def everything(self) -> Rows:
        """The rows of the table, and then the counterfactuals."""
        if self.counterfactuals is None:
            return Rows(self.table, self.logits)
        tables, logits = zip((self.table, self.logits), self.counterfactuals, strict=True)
        return Rows(pa.concat_tables(tables), np.concatenate(logits))

    @property
    def precision(self) -> str | None:
        """What the network computed in; None of scores that `lenstrain infer` did not write."""
        return precision_of(self.metadata)


@dataclass(frozen=True, kw_only=True)
class ScoreTable(SkyScores):
    """A table of scores, checked: one row a stamp."""

    labels: NDArray[np.int8]
    region: NDArray[np.int32]
    """Cluster of each row, numbered from 0; a cluster is a region unless there are too many."""
    n_regions: int
    """Distinct region_id."""
    n_clusters: int

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.labels.size

    def has(self, column: str) -> bool:
        """Whether a column (or the derived ``theta_e_over_psf``) is there."""
        if column == "theta_e_over_psf":
            return self.has("theta_e_arcsec") and self.has("psfsize_r")
        return column in self.table.column_names

    def numbers(self, column: str) -> Floats:
        """Column of numbers; null becomes NaN. ``theta_e_over_psf`` is derived."""
        if column == "theta_e_over_psf":
            psf = self.numbers("psfsize_r")
            positive = psf > 0
            safe = np.where(positive, psf, 1.0)
            return np.where(positive, self.numbers("theta_e_arcsec") / safe, np.nan)
        return to_floats(self.table[column], column, self.path)

    def codes(self, column: str) -> tuple[NDArray[np.int64], list[Any]]:
        """Number of each row's value among the distinct ones, -1 for null; and these, in order."""
        codes, values = codes_of(self.table[column])
        return codes, values.to_pylist()

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """Distinct origins: simulated, real, and then the others by name."""
        if not self.has(ORIGIN):
            return (SIMULATED,)
        return ordered_origins(read_origins(self.table).unique().to_pylist())

    def is_of(self, origin: str) -> NDArray[np.bool_]:
        """Whether each row is of an origin; shape (n,)."""
        return _is_of(self.table, origin)

    def of_origin(self, origin: str) -> Self:
        """The rows of one origin, counterfactuals too; there may be one class only."""
        if self.origins == (origin,):
            return self
        made = self.counterfactuals
        if made is not None:
            kept = np.flatnonzero(_is_of(made.table, origin))
            made = Rows(made.table.take(pa.array(kept)), made.logits[kept]) if kept.size else None
        return replace(self.where(self.is_of(origin)), counterfactuals=made)

    def where(self, kept: NDArray[np.bool_]) -> Self:
        """Some of the rows, of which there must be any; a mask of shape (n,)."""
        rows = np.flatnonzero(kept)
        table = self.table.take(pa.array(rows))
        region, n_regions, n_clusters = _clusters(table["region_id"])
        return replace(
            self,
            table=table,
            logits=self.logits[rows],
            labels=self.labels[rows],
            region=region,
            n_regions=n_regions,
            n_clusters=n_clusters,
            file_rows=self.in_file(rows),
        )

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Rows by descending logit."""
        return np.argsort(self.logits)[::-1]

    @cached_property
    def identity(self) -> NDArray[np.int64]:
        """Number of each distinct image: the same control may come up to 24 times."""
        if self.identity_column == "key":
            return np.arange(self.n, dtype=np.int64)
        # In order of appearance: millions of distinct hashes need no sorting.
        encoded = _encoded(self.table["pixel_hash"])
        codes = _indices(encoded)
        missing = codes < 0
        codes[missing] = len(encoded.dictionary) + np.arange(int(missing.sum()))
        return codes

    @property
    def identity_column(self) -> str:
        """Column that distinguishes images: the decoded pixels' hash if the table has it."""
        return "pixel_hash" if self.has("pixel_hash") else "key"

    @cached_property
    def n_negative_unique(self) -> int:
        """Distinct images among the negatives."""
        return np.unique(self.identity[self.labels == 0]).size


def read_score_table(
    path: Uri,
    columns: Mapping[str, str] | None = None,
    scores_are: ScoresAre | None = None,
    *,
    if_there: bool = False,
) -> ScoreTable:
    """Read and check a table of scores.

    Parameters
    ----------
    path : str or path
        Any table that `lensprep.tables.reader` reads, local or s3://, with key, label, logit or
        probability, and region_id; further columns are used if they have the names of the
        dataset's sidecar.
    columns : mapping, optional
        What the table calls some of them instead.
    scores_are : {"probability", "logit"}, optional
        What the scores are, whatever their column is called. Tables of `lenstrain infer` state
        it; if their logits lie in [0, 1] all the same, a note asks whether they were changed.
    if_there : bool
        Whether the table may use the standard names where it lacks those of `columns`.

    Returns
    -------
    ScoreTable
        The rows in file order, counterfactuals apart; keys are text.

    Raises
    ------
    ScoresError
        If the file cannot be read, lacks a column, is empty, has one class only, or holds null or
        non-finite scores, probabilities called logits, labels other than 0 and 1, rows without a
        region, or a key twice.
    """
    needed = ("key", "label", LOGIT, "region_id")
    rows = read_rows(path, needed, columns, scores_are, if_there=if_there)
    table, notes, everything = rows.table, rows.notes, rows.everything.table
    check_keys(everything["key"], path)
    labels = _read_labels(table["label"], path)
    check_ids(everything["region_id"], "region_id", path, repeated=True)
    region, n_regions, n_clusters = _clusters(table["region_id"])
    if n_clusters < n_regions:
        note = f"{n_regions:,} regions are drawn in {n_clusters:,} clusters of whole regions."
        notes = (*notes, note)
    return ScoreTable(
        **vars(rows) | {"notes": notes},
        labels=labels,
        region=region,
        n_regions=n_regions,
        n_clusters=n_clusters,
    )


def _clusters(regions: pa.ChunkedArray) -> tuple[NDArray[np.int32], int, int]:
    """Cluster of each row, and the numbers of regions and of clusters."""
    region, values = codes_of(regions)
    n_regions = len(values)
    n_clusters = min(n_regions, MAX_CLUSTERS)
    if n_clusters < n_regions:
        region = region * n_clusters // n_regions
    return region.astype(np.int32), n_regions, n_clusters


def read_sky_scores(
    path: Uri,
    columns: Mapping[str, str] | None = None,
    scores_are: ScoresAre | None = None,
) -> SkyScores:
    """Read scores for their positions: a table without labels or regions will do.

    Parameters
    ----------
    path, columns, scores_are
        As of `read_score_table`, where ``if_there``.

    Raises
    ------
    ScoresError
        If the file cannot be read, is empty, lacks key or logit, or holds non-finite scores.
    """
    return read_rows(path, ("key", LOGIT), columns, scores_are, if_there=True)


def read_rows(
    path: Uri,
    needed: tuple[str, ...],
    columns: Mapping[str, str] | None = None,
    scores_are: ScoresAre | None = None,
    *,
    if_there: bool = False,
) -> SkyScores:
    """Read the columns of `COLUMNS` that a table has, with keys as text.

    The columns `needed` must be there: key, `LOGIT`, and others. Else as `read_score_table`, whose
    errors it raises for these columns. Here, and nowhere else, counterfactuals are set aside.
    """
    try:
        found = read_table(path, COLUMNS, _TEXT_COLUMNS, rename=columns, if_there=if_there)
    except NotFoundError:
        raise ScoresError(f"{path}: no such file. Write one with `lenstrain infer`.") from None
    require_columns(found, needed, path, "Name it with --columns {}=COLUMN.")
    table = _without_empty_text(found.table)
    if table.num_rows == 0:
        raise ScoresError(f"{path} has no rows: score a split that is not empty.")
    check_ids(table["key"], "key", path)
    logits, notes = _read_logits(found, path, scores_are)
    position = table.column_names.index("key")
    rows = SkyScores(
        path=path,
        table=table.set_column(position, "key", table["key"].cast(pa.string())),
        logits=logits,
        metadata=found.metadata,
        names=tuple(found.names),
        sha256=found.sha256,
        notes=tuple(notes),
    )
    return _set_aside(rows)


def _without_empty_text(table: pa.Table) -> pa.Table:
    """The same with null where a source column holds no text, as CSV and FITS write null."""
    for name in SOURCE_COLUMNS:
        if name in table.column_names:
            text = pc.utf8_trim_whitespace(table[name].cast(pa.string()))
            text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
            table = table.set_column(table.column_names.index(name), name, text)
    return table


def ordered_origins(names: Iterable[str]) -> tuple[str, ...]:
    """Simulated, real, and then the others by name."""
    first = {SIMULATED: 0, REAL: 1}
    return tuple(sorted(names, key=lambda name: (first.get(name, 2), name)))


def _is_of(table: pa.Table, origin: str) -> NDArray[np.bool_]:
    if ORIGIN not in table.column_names:
        return np.full(table.num_rows, origin == SIMULATED)
    found: NDArray[np.bool_] = pc.equal(read_origins(table), origin).to_numpy()
    return found


def _set_aside(rows: SkyScores) -> SkyScores:
    """The same with its counterfactuals apart, and a note of how many they are."""
    made = is_counterfactual(rows.table)
    aside, kept = np.flatnonzero(made), np.flatnonzero(~made)
    if not aside.size:
        return rows
    if not kept.size:
        raise ScoresError(
            f"{rows.path} holds counterfactuals alone, which are judged by the threshold of other "
            "rows: score the whole split."
        )
    table = rows.table.take(pa.array(aside))
    counts = Counter(table[COUNTERFACTUAL].to_pylist())
    listed = ", ".join(f"{name} {counts[name]:,}" for name in in_order(counts))
    note = (
        f"{aside.size:,} counterfactuals ({listed}) are in a table of their own and count in no "
        "other figure: they are no independent images."
    )
    return replace(
        rows,
        table=rows.table.take(pa.array(kept)),
        logits=rows.logits[kept],
        notes=(*rows.notes, note),
        counterfactuals=Rows(table, rows.logits[aside]),
        file_rows=kept,
    )


def in_order(kinds: Iterable[str]) -> list[str]:
    """Distinct kinds of counterfactuals: the known ones in their order, and then the others."""
    known = {name: place for place, name in enumerate(COUNTERFACTUALS)}
    return sorted({*kinds}, key=lambda name: (known.get(name, len(known)), name))


def read_logits(path: Uri, needed: Sequence[str] = ()) -> pa.Table:
    """Read any table with logits: of one class alone, or of things that have no label.

    Raises
    ------
    ScoresError
        If it cannot be read, lacks a column, or holds logits that are not finite.
    """
    found = read_table(path, ("logit", *needed))
    require_columns(found, ("logit", *needed), path, "Add it, or name another table.")
    table = found.table
    logits = to_floats(table["logit"], "logit", path)
    if table.num_rows == 0 or not np.isfinite(logits).all():
        raise ScoresError(f"{path} is empty, or has logits that are not finite.")
    if "checkpoint_sha256" not in found.metadata:
        _check_logits(logits, path, "Write their logits, log(p / (1 - p)).")
    return table


def scored_geometry(metadata: Mapping[str, Any]) -> Geometry:
    """What scored stamps had in common, by the metadata; DECaLS's if these do not say."""
    stated = metadata.get("geometry")
    return (
        DECALS if stated is None else Geometry.from_dict(stated, "the scores' metadata: geometry")
    )


def precision_of(metadata: Mapping[str, Any]) -> str | None:
    """What scores were computed in, by their metadata; None if `lenstrain infer` wrote none.

    Tables that do not name it are older than the choice: float32.
    """
    written = "checkpoint_sha256" in metadata
    return str(metadata.get("precision", "float32")) if written else None


def precisions_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether scores of this metadata are known to have been computed in two precisions."""
    found = {precision_of(one), precision_of(other)}
    return None not in found and len(found) > 1


def logits_of(table: pa.Table) -> NDArray[np.float64]:
    """Logits as float64, NaN for null."""
    return np.asarray(table["logit"].cast(pa.float64()).to_numpy(), np.float64)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `lenstrain infer` wrote into a Parquet table of scores; {} if that is not known."""
    try:
        raw = (pq.read_schema(path).metadata or {}).get(METADATA_KEY, b"{}")
        content = json.loads(raw)
    except (OSError, pa.ArrowException, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_keys(keys: pa.ChunkedArray, path: Uri) -> None:
    """Refuse keys that occur more than once, with ScoresError."""
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = keys.value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    first = twice[0]
    raise ScoresError(
        f"{path}: {len(twice)} keys occur more than once ({first['values']!s:.100} occurs "
        f"{first['counts']} times); every stamp must be scored once. Remove the duplicates."
    )


def _read_labels(column: pa.ChunkedArray, path: Uri) -> NDArray[np.int8]:
    if column.null_count:
        raise ScoresError(f"{path}: {column.null_count} labels are null; only 0 and 1 can be.")
    values = to_floats(column, "label", path)
    odd = ~np.isin(values, (0.0, 1.0))
    if odd.any():
        raise ScoresError(
            f"{path}: {int(odd.sum())} labels are neither 0 nor 1 (first: {values[odd][0]:g})."
        )
    positives = int(values.sum())
    if positives in (0, values.size):
        only = "lenses (label 1)" if positives else "non-lenses (label 0)"
        raise ScoresError(
            f"{path} has {only} alone: ranking needs both classes. Score a split that has them."
        )
    return values.astype(np.int8)


def _read_logits(
    found: TableFile, path: Uri, scores_are: ScoresAre | None
) -> tuple[Floats, list[str]]:
    table = found.table
    name = "logit" if "logit" in table.column_names else "probability"
    values = to_floats(table[name], name, path)
    bad = ~np.isfinite(values)
    if bad.any():
        key = table["key"][int(np.argmax(bad))]
        raise ScoresError(
            f"{path}: {int(bad.sum())} of {values.size} values of {name} are not finite (first: "
            f"key {key!s:.100}). Score these stamps again, or remove the rows and say so."
        )
    alike = _like_probabilities(values)
    if "checkpoint_sha256" in found.metadata and name == "logit":
        if not alike:
            odd = scores_are == "probability"
            return values, ["--scores-are is ignored: `lenstrain infer` wrote logits."] * odd
        if scores_are is None:  # an untrained network may give such logits
            remedy = "If the table was changed since, say --scores-are probability."
            note = f"{alike.capitalize()} {remedy}"
            _log.warning("%s: %s", path, note)
            return values, [note]
    if name == "logit" and scores_are is None:
        _check_logits(values, path)
    notes = [] if scores_are is None else [f"Column {name}: {scores_are}, as --scores-are says."]
    if (scores_are or name) == "logit":
        return values, notes
    logits, more = _from_probability(values, path)
    return logits, notes + more


def _check_logits(
    values: Floats,
    path: Uri,
    remedy: str = "Tell evaluate or mine by --scores-are probability, or logit if they are logits.",
) -> None:
    """Refuse finite logits that all lie in [0, 1], as probabilities do, with ScoresError.

    Only their ranks would be right. Few rows, and rows that are all alike, prove nothing.
    """
    if alike := _like_probabilities(values):
        raise ScoresError(f"{path}: {alike} {remedy}")


def _like_probabilities(values: Floats) -> str:
    """What makes logits look like probabilities; "" if nothing does."""
    low, high = (values.min(), values.max()) if values.size >= _FEWEST else (0.0, 0.0)
    if low == high or low < 0 or high > 1:
        return ""
    return (
        f"all {values.size:,} values of logit lie between 0 and 1 ({low:.3g} to {high:.3g}), as "
        "probabilities do."
    )


def _from_probability(values: Floats, path: Uri) -> tuple[Floats, list[str]]:
    outside = (values < 0) | (values > 1)
    if outside.any():
        raise ScoresError(
            f"{path}: {int(outside.sum())} probabilities lie outside [0, 1]. If these are logits, "
            "tell evaluate or mine by --scores-are logit."
        )
    notes = ["Ranked by probability: rounding near 1 ties the best candidates; logits do not."]
    ends = int(((values == 0) | (values == 1)).sum())
    if ends:
        notes.append(
            f"{ends:,} probabilities are exactly 0 or 1; their likelihood is taken at logits "
            f"{_LEAST_LOGIT:g} and {_GREATEST_LOGIT:g}."
        )
    return np.clip(special.logit(values), _LEAST_LOGIT, _GREATEST_LOGIT), notes


def codes_of(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Number of each distinct value in sorted order, -1 for null; and the distinct values."""
    encoded = _encoded(column)
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    indices = _indices(encoded)
    values = encoded.dictionary.take(pa.array(order))
    if not order.size:
        return indices, values
    return np.where(indices >= 0, rank[np.maximum(indices, 0)], -1), values


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = column.dictionary_encode().combine_chunks()
    return encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded


def _indices(encoded: pa.DictionaryArray) -> NDArray[np.int64]:
    found: NDArray[np.int64] = (
        encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return found
