"""Rows of a dataset as a person asks for them: tables, and stamps by key, position or condition.

    Rows        what a dataset (all of its splits) and one split have in common
    Split       one split: `dataset["test"]`

Sidecar columns are read shard by shard, only those that the question names; pixels and whole rows
only of the stamps that are the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.geometry import Geometry
from lensprep.dataset.manifest import Manifest, ShardInfo, SplitInfo
from lensprep.dataset.sidecar import join_tables
from lensprep.dataset.stamps import SEPARATION, Stamp, Stamps
from lensprep.dataset.where import Where, compile_where
from lensprep.errors import ConfigError, DatasetError
from lensprep.tables.positions import on_sky, separation_arcsec

_PLACE: Final = ("split", "index")
"""Columns that every row has besides those of its sidecar."""


class Reader(Protocol):
    """What rows are read from: a dataset."""

    uri: str
    manifest: Manifest
    geometry: Geometry

    def split(self, name: str) -> SplitInfo:
        """See `Dataset.split`; the others likewise."""

    def columns(self, split: str) -> list[str]:
        """Of the first sidecar."""

    def read_sidecars(
        self, shards: Sequence[ShardInfo], columns: Sequence[str] | None
    ) -> Iterable[pa.Table]:
        """One table a shard."""

    def read_shard_sidecar(
        self, shard: ShardInfo, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Of one shard."""

    def read_shard_pixels(
        self, shard: ShardInfo, rows: NDArray[Any] | Sequence[int]
    ) -> NDArray[np.float16]:
        """Of one shard."""


class Rows(ABC):
    """Rows of one split, or of all, as tables, stamps and pictures."""

    @property
    @abstractmethod
    def _reader(self) -> Reader:
        """The dataset."""

    @property
    @abstractmethod
    def _splits(self) -> tuple[str, ...]:
        """The splits whose rows these are."""

    def table(self, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Sidecar rows, in order.

        Parameters
        ----------
        columns : sequence of str, optional
            Columns to read, of the sidecar or ``split`` and ``index`` (position in the split, as
            `Dataset.read_pixels` takes it); all that are not nested, if not given.
        where : str, optional
            Rows to keep, such as ``label == 1 and theta_e_arcsec > 0.5`` (`lensprep.dataset.where`
            has the grammar). A row where it is null is not kept.

        Returns
        -------
        pyarrow.Table
            ``.to_pandas()`` makes a data frame of it.

        Raises
        ------
        ConfigError
            If `where` cannot be parsed or evaluated, or names a column that is not there.
        DatasetError
            If one of `columns` is not there, or there are no rows at all.
        ShardError
            If a sidecar is missing or damaged.

        Examples
        --------
        >>> test = open_dataset("demo/dataset")["test"]
        >>> test.table(["key", "theta_e_arcsec"], where="label == 1 and psfsize_r < 1.2")
        """
        keep = self._where(where)
        wanted = None if columns is None else [*columns, *(keep.columns if keep else ())]
        parts = []
        for _, found in self._tables(wanted):
            part = found.filter(pa.array(keep.mask(found))) if keep else found
            parts.append(part if columns is None else part.select(list(columns)))
        return join_tables(parts, f"{self._reader.uri}: the sidecars")

    def stamp(self, key: str) -> Stamp:
        """The stamp with a key.

        Parameters
        ----------
        key : str
            In full.

        Raises
        ------
        DatasetError
            If no stamp has it; the message says which split does, or which keys begin like it.
        ShardError
            If a shard is missing or damaged.

        Examples
        --------
        >>> open_dataset("demo/dataset").stamp("6db0fa938adbdb555160d15c4d2ada30").plot()
        """
        found = self._find(
            ["key"], lambda rows: np.flatnonzero(pc.equal(rows["key"], key).to_numpy()), 1
        )
        if not found:
            raise self._no_such_key(key)
        return found[0]

    def stamps(self, where: str | None = None, count: int = 12, seed: int = 0) -> Stamps:
        """Some stamps, or some of those that fulfil a condition.

        Conversion makes each shard a random sample of its split: only as many are searched as it
        takes.

        Parameters
        ----------
        where : str, optional
            As of `table`.
        count : int
            Most stamps to read: a stamp of DECaLS takes 25 kB.
        seed : int
            Another seed draws others, if there are more.

        Returns
        -------
        Stamps
            Fewer than `count`, or none, if there are no more.

        Raises
        ------
        ConfigError
            If `where` cannot be used, or `count` is negative.
        DatasetError, ShardError
            As `table`.

        Examples
        --------
        >>> wide = open_dataset("demo/dataset")["test"].stamps("theta_e_arcsec > 0.8", count=24)
        >>> wide.pixels.shape
        (24, 3, 64, 64)
        """
        if count < 0:
            raise ConfigError(f"count is {count}; ask for 0 stamps or more.")
        keep, rng = self._where(where), np.random.default_rng(seed)

        def drawn(rows: pa.Table) -> NDArray[np.intp]:
            return rng.permutation(np.flatnonzero(keep.mask(rows)) if keep else rows.num_rows)

        return self._find(list(keep.columns) if keep else [], drawn, count)

    def near(self, ra: float, dec: float, radius_arcsec: float) -> Stamps:
        """Stamps whose centres lie around a position on the sky, the nearest first.

        Parameters
        ----------
        ra, dec : float
            Degrees, ICRS.
        radius_arcsec : float
            Along the great circle. Rows without a position are never found.

        Returns
        -------
        Stamps
            None, if there is none. Their table has the column ``separation_arcsec``.

        Raises
        ------
        ConfigError
            If the position is not on the sky, or the radius is negative.
        DatasetError
            If the sidecars have no positions.
        ShardError
            If a sidecar is missing or damaged.

        Examples
        --------
        >>> found = open_dataset("demo/dataset").near(4.749144, -27.060934, radius_arcsec=5)
        >>> found.table["separation_arcsec"]
        """
        if not (on_sky(np.array([ra], float), np.array([dec], float)).all() and radius_arcsec >= 0):
            raise ConfigError(
                f"ra {ra}, dec {dec}, radius {radius_arcsec} is no circle on the sky: degrees are "
                "wanted, -180 to 360 and -90 to 90, and arcsec."
            )
        if missing := {"ra", "dec"} - {*self._columns()}:
            raise DatasetError(
                f"{self._reader.uri} has no positions (no column {' and '.join(sorted(missing))}). "
                "Select by key or by condition, or convert again from a source that has them."
            )

        def away(rows: pa.Table) -> NDArray[np.float64]:
            of = {name: rows[name].cast(pa.float64(), safe=False) for name in ("ra", "dec")}
            return separation_arcsec(of["ra"].to_numpy(), of["dec"].to_numpy(), ra, dec)

        found = self._find(["ra", "dec"], lambda t: np.flatnonzero(away(t) <= radius_arcsec))
        arcsec = away(found.table)
        order = np.argsort(arcsec, kind="stable")
        return Stamps(
            table=_with(found.table, **{SEPARATION: arcsec}).take(order),
            pixels=found.pixels[order],
            geometry=found.geometry,
            normalization=found.normalization,
        )

    def plot(self, where: str | None = None, count: int = 12, seed: int = 0) -> Any:
        """Colour pictures of some stamps: `stamps` and `Stamps.plot` in one.

        Returns
        -------
        matplotlib.figure.Figure

        Examples
        --------
        >>> open_dataset("demo/dataset")["test"].plot("label == 1 and theta_e_arcsec > 0.8")
        """
        return self.stamps(where, count, seed).plot()

    def _columns(self) -> list[str]:
        """Columns of the first sidecar."""
        for name in self._splits:
            if self._reader.split(name).shards:
                return self._reader.columns(name)
        raise DatasetError(f"{self._reader.uri}: there are no rows in {self._names()}.")

    def _names(self) -> str:
        return ", ".join(self._splits) or "it"

    def _where(self, text: str | None) -> Where | None:
        known = self._columns()  # also of no rows at all an error
        return None if text is None else compile_where(text, [*known, *_PLACE])

    def _tables(self, columns: Sequence[str] | None) -> Iterator[tuple[ShardInfo, pa.Table]]:
        """Sidecar rows of each shard, with their places."""
        if columns is not None:  # the key, lest a table without columns forget its rows
            columns = [*dict.fromkeys(n for n in columns if n not in _PLACE)] or ["key"]
        for name in self._splits:
            start, shards = 0, self._reader.split(name).shards
            tables = self._reader.read_sidecars(shards, columns)
            for shard, found in zip(shards, tables, strict=True):
                index = np.arange(start, start + shard.rows)
                yield shard, _with(found, split=pa.repeat(name, shard.rows), index=index)
                start += shard.rows

    def _find(
        self,
        columns: Sequence[str],
        choose: Callable[[pa.Table], NDArray[np.intp]],
        count: int | None = None,
    ) -> Stamps:
        """Stamps at the rows that are chosen of each shard, until there are enough."""
        parts: list[tuple[pa.Table, NDArray[np.float16]]] = []
        left = count
        for shard, found in self._tables(columns):
            rows = np.sort(choose(found)[:left])
            if rows.size or not parts:  # of the first one to have the columns
                whole = _with(self._reader.read_shard_sidecar(shard),
                              **{name: found[name] for name in _PLACE})  # fmt: skip
                pixels = self._reader.read_shard_pixels(shard, rows)
                parts.append((whole.take(rows), pixels))
            left = None if left is None else left - len(rows)
            if left == 0:
                break
        if not parts:
            self._columns()  # there are no rows: an error
        tables, pixels_of = zip(*parts, strict=True)
        return Stamps(
            table=join_tables(tables, f"{self._reader.uri}: the sidecars"),
            pixels=np.concatenate(pixels_of),
            geometry=self._reader.geometry,
            normalization=self._reader.manifest.normalization,
        )

    def _no_such_key(self, key: str) -> DatasetError:
        where, near = f"{self._reader.uri}, {self._names()}: no stamp has the key {key!r:.80}.", []
        for name in self._reader.manifest.splits:
            for keys in self._reader.read_sidecars(self._reader.split(name).shards, ["key"]):
                if pc.any(pc.equal(keys["key"], key)).as_py():
                    return DatasetError(f"{where} It is in {name}.")
                alike = pc.starts_with(keys["key"], pattern=key[:6])
                near += keys["key"].filter(alike).slice(0, 3).to_pylist()
        if key and near:
            return DatasetError(f"{where} Keys that begin like it: {', '.join(near[:3])}.")
        return DatasetError(f'{where} table(["key"]) lists them.')


class Split(Rows):
    """One split of a dataset; make it with ``dataset["test"]``.

    Parameters
    ----------
    dataset : Dataset
    name : str

    Raises
    ------
    DatasetError
        If the dataset has no such split.

    Examples
    --------
    >>> test = open_dataset("demo/dataset")["test"]
    >>> len(test)
    7183
    """

    def __init__(self, dataset: Reader, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.info = dataset.split(name)

    @property
    def _reader(self) -> Reader:
        return self.dataset

    @property
    def _splits(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def columns(self) -> list[str]:
        """Columns of its sidecars."""
        return self._columns()

    def __len__(self) -> int:
        return self.info.rows

    def __repr__(self) -> str:
        return f"Split {self.name} of {self.dataset.uri}\n{counts_text({self.name: self.info})}"


def counts_text(splits: dict[str, SplitInfo]) -> str:
    """What is in each split, one line each: rows, of which lenses, and so on."""
    lines: list[tuple[str, ...]] = [
        ("split", "rows", "lenses", "non-lenses", "counterfactuals", "regions", "shards")
    ]
    for name, info in splits.items():
        counts = (
            info.rows,
            info.ordinary_classes["1"],
            info.ordinary_classes["0"],
            sum(info.counterfactuals.values()),
            info.regions,
            len(info.shards),
        )
        lines.append((name, *(f"{count:,}" for count in counts)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _with(table: pa.Table, **columns: Any) -> pa.Table:
    """A table with further columns, which replace those of their names."""
    kept = table.drop_columns([name for name in columns if name in table.column_names])
    for name, values in columns.items():
        kept = kept.append_column(name, values if hasattr(values, "type") else pa.array(values))
    return kept
