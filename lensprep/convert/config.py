"""What decides the content of a dataset, and the limits within which it is accepted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import pyarrow as pa

from lensprep.configfile import typed
from lensprep.dataset.normalization import DEFAULT_CLIP, DEFAULT_MODE, Mode, NormalizationSpec
from lensprep.dataset.where import compile_where
from lensprep.errors import ConfigError
from lensprep.source.contract import FilterRules
from lensprep.source.regions import check_fractions
from lensprep.source.survey import DECALS_SURVEY, STAMP_COLUMN, Survey

SHARD_ROWS: Final = 8192
"""Rows of a shard of stamps of DECaLS: 220 MB."""


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class CutoutConfig:
    """How catalogues of cutouts are read and placed."""

    folders: tuple[str, ...] = ()
    """Folders of the cutouts, in the order of the catalogues; the folder of the catalogue itself
    for those that have none."""
    columns: tuple[tuple[str, str], ...] = ()
    """What catalogues call their columns, as (ours, theirs)."""
    grade_lens: tuple[str, ...] = ()
    """Grades that mean a lens, for catalogues without labels."""
    fractions: tuple[float, ...] | None = None
    """Shares of the regions in train, val and test, where neither a catalogue nor a tree around
    states the split; those of the survey if not given."""
    drop_overlap: bool = False
    """Leave out cutouts that share sky with a stamp of another split, instead of stopping."""

    def __post_init__(self) -> None:
        if self.fractions is not None:
            check_fractions(self.fractions)


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What decides the content of a dataset, and the limits within which it is accepted."""

    seed: int = 0
    """Seed of the placement: another seed, another global shuffle."""
    shard_rows: int | None = None
    """Rows of a shard, on average; if not given `SHARD_ROWS`, scaled to the size of a stamp."""
    normalize: Mode = DEFAULT_MODE
    """Normalisation mode."""
    clip: float = DEFAULT_CLIP
    """Stored values are clipped to [-clip, clip]."""
    max_bad_pixel_frac: float | None = None
    """Leave out rows with a larger ``bad_pixel_frac``."""
    where: str | None = None
    """Keep only rows for which this expression on the columns is true."""
    max_reject_rate: float = 0.01
    """Commit nothing if a larger share of the input rows is rejected."""
    skip_bad_files: bool = False
    """Leave out parquet files and row groups that cannot be read, and account for them; accept the
    output of an unfinished job."""
    drop_columns: tuple[str, ...] | None = None
    """Columns of the source to leave out of the sidecars; none may be a required one."""
    survey: Survey = DECALS_SURVEY
    """What stamps and columns of the source are."""
    cutouts: CutoutConfig | None = None
    """How catalogues among the sources are read; None where there are none."""

    def __post_init__(self) -> None:
        if self.shard_rows is not None and self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1, got {self.shard_rows}.")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(f"max_reject_rate must lie in [0, 1], got {self.max_reject_rate}.")
        if self.max_bad_pixel_frac is not None and not self.max_bad_pixel_frac >= 0:
            raise ConfigError(
                f"max_bad_pixel_frac must be at least 0, got {self.max_bad_pixel_frac}."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must fit 64 bits, got {self.seed}.")
        self.survey.normalization(self.normalize, self.clip)  # checks both
        # None rather than empty, as in the plans of versions without this option.
        dropped = tuple(sorted({*(self.drop_columns or ())})) or None
        object.__setattr__(self, "drop_columns", dropped)

    @property
    def rows_per_shard(self) -> int:
        """Rows of a shard, on average."""
        return self.shard_rows or self.survey.geometry.scaled_rows(SHARD_ROWS)

    @property
    def normalization(self) -> NormalizationSpec:
        """The normalisation, with the defaults of the survey."""
        return self.survey.normalization(self.normalize, self.clip)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the bytes, with values as JSON returns them.

        An interrupted conversion resumes only with the same ones.
        """
        tolerances = ("max_reject_rate", "skip_bad_files")
        return {name: value for name, value in self.facts.items() if name not in tolerances}

    @property
    def facts(self) -> dict[str, Any]:
        """All settings, with values as JSON returns them.

        The survey is its `Survey.identity`; None for Phase 4c, as in the plans of versions that
        knew no other.
        """
        found: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, survey=DECALS_SURVEY))))
        found["shard_rows"] = self.rows_per_shard
        found["survey"] = None if self.survey.is_phase4c else self.survey.identity
        if self.cutouts is None:  # as before there were any
            del found["cutouts"]
        else:
            # Where they lie may change, as it may for trees.
            del found["cutouts"]["folders"]
        return found

    def rules(self, schema: pa.Schema) -> FilterRules:
        """The user's cuts, compiled and tried on an empty table to find mistakes at once.

        Raises
        ------
        ConfigError
            If ``where`` cannot be parsed, names an unknown column, or compares unlike types; or
            there is no ``bad_pixel_frac`` to cut.
        """
        is_tree = STAMP_COLUMN in schema.names
        if is_tree and self.max_bad_pixel_frac is not None and "bad_pixel_frac" not in schema.names:
            raise ConfigError(
                "max_bad_pixel_frac needs a column bad_pixel_frac, which the source lacks."
            )
        if self.where is None:
            return FilterRules(max_bad_pixel_frac=self.max_bad_pixel_frac)
        where = compile_where(self.where, schema.names)
        where.mask(schema.empty_table())
        return FilterRules(max_bad_pixel_frac=self.max_bad_pixel_frac, where=where)
