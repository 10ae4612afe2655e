"""Which non-lenses become hosts, and whose light each of them gets: families, file by file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from lensprep.dataset.layout import BANDS, COUNTERFACTUAL, SOURCE_COLOURS, SPLITS
from lensprep.engine import run_tasks
from lensprep.errors import InputError, SchemaError, names_text
from lensprep.source.contract import filter_rows, is_counterfactual, label_rows, numbers
from lensprep.source.footers import SourceFile
from lensprep.source.survey import LEAKING_COLUMNS, SEEING_COLUMN, SPLIT_COLUMN
from lensprep.source.tree import Source

FWHM_COLUMNS: Final = tuple(f"psf_fwhm_used_{band}" for band in BANDS)
FLUX_COLUMN: Final = "total_injected_flux_r"
NEEDED: Final = (
    "theta_e_arcsec", "lens_e", "shear", "src_reff_arcsec", "src_e", "src_phi_rad", "src_x_arcsec",
    "src_y_arcsec", FLUX_COLUMN, *SOURCE_COLOURS,
)  # fmt: skip
"""Columns without which a lens is no donor: what its arc is traced from."""
_POSITIVE: Final = ("theta_e_arcsec", "src_reff_arcsec", FLUX_COLUMN)
_PLACE: Final = ("task_id", SPLIT_COLUMN, "region_id", "brickname", "ra", "dec", SEEING_COLUMN)


@dataclass(frozen=True)
class Families:
    """The families whose hosts are rows of one file."""

    number: int
    """Of the file, in the order of the source."""
    source: Source
    file: SourceFile
    rows: NDArray[np.int64]
    """Row of each host in the file, ascending; shape (families,)."""
    fwhm_arcsec: NDArray[np.float64]
    """Seeing of each host in each band; shape (families, bands)."""
    donors: pa.Table
    """Leaking columns and task_id of as many lenses: which host gets which is for the pixels."""

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.file.path


@dataclass(frozen=True)
class Plan:
    """Every family of a source."""

    tasks: list[Families]
    hosts: int
    """Distinct non-lenses that could be hosts."""
    donors: int
    """Lenses whose light could be taken."""
    unusable: dict[str, int]
    """Rows that are neither, by reason."""


@dataclass(frozen=True)
class _Scan:
    source: Source
    file: SourceFile
    number: int

    @property
    def label(self) -> str:
        return self.file.path


def plan_families(
    source: Source,
    share: float,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Choose hosts and donors.

    A non-lens is a host if a hash of its place on the sky, and the seed, lies below `share`: the
    same galaxy in another selection set is none beside it. Donors are lenses of the host's split,
    in a seeded order, each as often as any other to one.

    Parameters
    ----------
    source : Source
    share : float
        Share of the non-lenses of every split that become hosts.
    seed : int
    workers : int, optional
        Processes that read the light columns.
    progress : callable, optional
        Called with (files read, files).

    Raises
    ------
    SchemaError
        If the source lacks a column that arcs are traced from.
    InputError
        If it has no usable lens or non-lens in a split that has the other.
    """
    missing = [name for name in NEEDED if name not in source.schema.names]
    if missing:
        raise SchemaError(
            f"{source.uri} lacks {names_text(missing)}: without them the light of its lenses is "
            "not known."
        )
    bare = source.bare
    scans = [_Scan(bare, file, number) for number, file in enumerate(source.files)]
    found: list[tuple[int, pa.Table, pa.Table, dict[str, int]]] = []
    for result in run_tasks(_scan, scans, workers=workers):
        found.append(result)
        if progress is not None:
            progress(len(found), len(scans))
    found.sort(key=itemgetter(0))
    unusable: dict[str, int] = {}
    for *_, reasons in found:
        for reason, count in reasons.items():
            unusable[reason] = unusable.get(reason, 0) + count
    hosts = pa.concat_tables([hosts for _, hosts, _, _ in found])
    donors = pa.concat_tables([donors for _, _, donors, _ in found])
    file_of_host = np.repeat([n for n, *_ in found], [h.num_rows for _, h, _, _ in found])
    # The first row of every place on the sky.
    first = np.sort(np.unique(hosts["place"].to_numpy(), return_index=True)[1])
    again = hosts.num_rows - len(first)
    if again:
        unusable["repeated_galaxy"] = again
    drawn = _draw(hosts["place"].to_numpy()[first], seed)
    chosen = first[drawn < share]
    donor_of = _donors(hosts.take(pa.array(chosen)), donors, seed, source.uri)
    fwhm = _seeing(hosts.take(pa.array(chosen)), donors)
    tasks = []
    names = ["task_id", *(name for name in LEAKING_COLUMNS if name in donors.column_names)]
    for file in range(len(scans)):
        mine = np.flatnonzero(file_of_host[chosen] == file)
        if mine.size:
            rows = hosts["row"].to_numpy()[chosen[mine]]
            light = donors.select(names).take(pa.array(donor_of[mine]))
            tasks.append(Families(file, bare, source.files[file], rows, fwhm[mine], light))
    return Plan(tasks, len(first), donors.num_rows, unusable)


def _scan(task: _Scan) -> tuple[int, pa.Table, pa.Table, dict[str, int]]:
    """Hosts and donors of one file, and why its other rows are neither."""
    schema = task.source.schema
    wanted = {*_PLACE, *LEAKING_COLUMNS, "cutout_ok", "bandset", COUNTERFACTUAL}
    columns = [name for name in schema.names if name in wanted]
    hosts, donors = [], []
    reasons: dict[str, int] = {}
    start = 0
    for table in task.source.iter_file(task.file, columns):
        labels = label_rows(table)
        known = np.all([np.isfinite(numbers(table[name])) for name in NEEDED], axis=0)
        known &= np.all([numbers(table[name]) > 0 for name in _POSITIVE], axis=0)
        seen = numbers(table[SEEING_COLUMN]) > 0
        no_split = pc.invert(pc.is_in(table[SPLIT_COLUMN], pa.array(SPLITS))).to_numpy()
        cut = filter_rows(table)
        reason = np.select(
            [is_counterfactual(table), cut != "", labels.reason != "", no_split,
             (labels.label == 0) & ~seen, (labels.label == 1) & ~known],
            ["counterfactual", cut, labels.reason, "unknown_split", "no_seeing", "no_arc_columns"],
            "",
        )  # fmt: skip
        for name, count in zip(*np.unique(reason[reason != ""], return_counts=True), strict=True):
            reasons[str(name)] = reasons.get(str(name), 0) + int(count)
        usable = reason == ""
        rows = pa.array(np.arange(start, start + table.num_rows))
        places = zip(*(table[name].to_pylist() for name in ("brickname", "ra", "dec")), strict=True)
        place = pa.array(
            [xxhash.xxh3_64_intdigest(repr(at).encode()) for at in places], pa.uint64()
        )
        light = table.select([*_PLACE]).append_column("row", rows).append_column("place", place)
        hosts.append(light.filter(pa.array(usable & (labels.label == 0))))
        donors.append(table.filter(pa.array(usable & (labels.label == 1))))
        start += table.num_rows
    return task.number, pa.concat_tables(hosts), pa.concat_tables(donors), reasons


def _draw(places: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A uniform number for every place, from it and the seed alone."""
    hashed = [xxhash.xxh3_64_intdigest(place.tobytes(), seed) for place in places]
    return np.array(hashed, np.uint64) / 2.0**64


def _donors(hosts: pa.Table, donors: pa.Table, seed: int, uri: str) -> NDArray[np.int64]:
    """Row of a donor for every host, of its split."""
    chosen = np.empty(hosts.num_rows, np.int64)
    of_host, of_donor = (np.array(t[SPLIT_COLUMN].to_pylist(), np.str_) for t in (hosts, donors))
    for number, split in enumerate(SPLITS):
        mine, theirs = np.flatnonzero(of_host == split), np.flatnonzero(of_donor == split)
        if mine.size and not theirs.size:
            raise InputError(
                f"{uri} has no usable lens in split {split!r}, whose light its non-lenses could "
                "get."
            )
        order = np.random.default_rng([seed, 6, number]).permutation(theirs)
        chosen[mine] = order[np.arange(mine.size) % max(1, theirs.size)]
    return chosen


def _seeing(hosts: pa.Table, donors: pa.Table) -> NDArray[np.float64]:
    """PSF FWHM of hosts in each band, arcsec; shape (hosts, bands).

    A non-lens states that of r only. The others follow from the median ratio of the bands over the
    lenses of its brick, else of its region, else of all.
    """
    red = numbers(hosts[SEEING_COLUMN])
    fwhm = np.repeat(red[:, None], len(BANDS), axis=1)
    used = np.full((donors.num_rows, len(BANDS)), np.nan)
    for number, name in enumerate(FWHM_COLUMNS):
        if name in donors.column_names:
            used[:, number] = numbers(donors[name])
    reference = used[:, BANDS.index("r")]
    for number in range(len(BANDS)):
        ok = (used[:, number] > 0) & (reference > 0)
        if not ok.any():
            continue
        ratio, kept = used[ok, number] / reference[ok], donors.filter(pa.array(ok))
        best = np.full(hosts.num_rows, np.median(ratio))
        for name in ("region_id", "brickname"):
            medians = dict(_medians(kept[name].to_pylist(), ratio))
            best = np.array([medians.get(at, value) for at, value in
                             zip(hosts[name].to_pylist(), best, strict=True)])  # fmt: skip
        fwhm[:, number] *= best
    return fwhm


def _medians(groups: Sequence[Any], values: NDArray[np.float64]) -> Iterator[tuple[Any, float]]:
    """Each group and the median of its values."""
    names, code = np.unique(np.array(groups), return_inverse=True)
    order = np.argsort(code, kind="stable")
    parts = np.split(values[order], np.cumsum(np.bincount(code))[:-1])
    yield from zip(names.tolist(), (float(np.median(part)) for part in parts), strict=True)
