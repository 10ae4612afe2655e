"""What decides the content of a dataset, and the limits within which it is accepted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from lensprep.configfile import typed
from lensprep.dataset.normalization import DEFAULT_CLIP, DEFAULT_MODE, Mode, normalization_spec
from lensprep.dataset.where import compile_where
from lensprep.errors import ConfigError
from lensprep.source.contract import FilterRules


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What decides the content of a dataset, and the limits within which it is accepted."""

    seed: int = 0
    """Seed of the placement: another seed, another global shuffle."""
    shard_rows: int = 8192
    """Rows of a shard, on average."""
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

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1, got {self.shard_rows}.")
        if not 0 <= self.max_reject_rate <= 1:
            raise ConfigError(f"max_reject_rate must lie in [0, 1], got {self.max_reject_rate}.")
        if self.max_bad_pixel_frac is not None and not self.max_bad_pixel_frac >= 0:
            raise ConfigError(
                f"max_bad_pixel_frac must be at least 0, got {self.max_bad_pixel_frac}."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed must fit 64 bits, got {self.seed}.")
        normalization_spec(self.normalize, self.clip)  # checks both
        # None rather than empty, as in the plans of versions without this option.
        dropped = tuple(sorted({*(self.drop_columns or ())})) or None
        object.__setattr__(self, "drop_columns", dropped)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the bytes, with values as JSON returns them.

        An interrupted conversion resumes only with the same ones.
        """
        tolerances = ("max_reject_rate", "skip_bad_files")
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in tolerances
        }

    def rules(self, schema: pa.Schema) -> FilterRules:
        """The user's cuts, compiled and tried on an empty table to find mistakes at once.

        Raises
        ------
        ConfigError
            If ``where`` cannot be parsed, names an unknown column, or compares unlike types.
        """
        if self.where is None:
            return FilterRules(max_bad_pixel_frac=self.max_bad_pixel_frac)
        where = compile_where(self.where, schema.names)
        where.mask(schema.empty_table())
        return FilterRules(max_bad_pixel_frac=self.max_bad_pixel_frac, where=where)
