"""The families of one file: hosts are read, each gets the light of a donor, in every kind."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lensprep.counterfactual.balance import features
from lensprep.counterfactual.light import SCATTER_LEAST, arc_of, draw_light, on_pixels
from lensprep.counterfactual.plan import FLUX_COLUMN, FWHM_COLUMNS, Families
from lensprep.counterfactual.stamp import (
    Host,
    Psf,
    add_light,
    measure_host,
    peak_snr,
    psf_transfer,
)
from lensprep.dataset.layout import (
    BANDS,
    COUNTERFACTUAL,
    DONOR_TASK,
    HOST_TASK,
    LENSED,
    SOURCE_COLOURS,
    STAMP_SHAPE,
    STAMP_SIZE,
    band_fluxes,
)
from lensprep.decode.reasons import RejectReason
from lensprep.decode.stampnpz import decode
from lensprep.source.contract import filter_rows, is_counterfactual, label_rows
from lensprep.source.survey import LEAKING_COLUMNS, SPLIT_COLUMN, STAMP_COLUMN
from lensprep.store import S3Options, open_store
from lensprep.synth.lenses import Lens, from_phase4c
from lensprep.synth.rows import encode_stamp

Columns = dict[str, Any]

UNRESOLVED: Final = "unresolved"
"""Why a family has no scattered arc."""
_READ_ROWS = 256
_GROUP_ROWS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How families are made."""

    out: str
    kinds: tuple[str, ...]
    seed: int
    psf: Psf
    photon_noise: bool
    sample: int
    """Most stamps of each class and kind of a file that the balance is measured on."""
    options: S3Options | None = None


@dataclass
class Made:
    """What was made of one file."""

    kinds: Counter[str] = field(default_factory=Counter)
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    """The same by split."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows that were not made, by kind and reason, such as ``scattered/unresolved``."""
    bytes: int = 0
    features: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Of lenses, controls, and each kind."""


def part_name(path: str) -> str:
    """Name of the file with the families of a file of the source."""
    at = PurePosixPath(path)
    return str(at.with_name(f"counterfactual-{at.name}"))


def make_families(task: tuple[Families, Making]) -> Made:
    """Make the families of one file and write them."""
    families, making = task
    made = Made()
    hosts, lenses = _read(families, making.sample)
    pixels = _decoded(hosts, made.skipped, len(making.kinds))
    records: list[Columns] = []
    stamps: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in making.kinds}
    for host, columns, donor, fwhm in _matched(families, hosts, pixels):
        for row, stamp in _family(host, columns, donor, fwhm, making, made.skipped):
            kind = row[COUNTERFACTUAL]
            made.kinds[kind] += 1
            made.splits.setdefault(row[SPLIT_COLUMN], Counter())[kind] += 1
            records.append(row)
            if len(stamps[kind]) < making.sample:
                stamps[kind].append(stamp)
    groups = {
        "lenses": _stamps_of(lenses),
        "controls": [*pixels.values()][: making.sample],
    } | stamps
    made.features = {
        name: features(np.stack(some)) if some else np.empty((0, 18))
        for name, some in groups.items()
    }
    data = _parquet(records, families)
    made.bytes = len(data)
    open_store(making.out, making.options).write(part_name(families.file.path), data)
    return made


def _read(families: Families, sample: int) -> tuple[list[Columns], pa.ChunkedArray]:
    """All columns of the hosts, and the stamps of some lenses of their file."""
    hosts: list[Columns] = []
    lenses: list[pa.ChunkedArray] = []
    start = taken = 0
    for table in families.source.iter_file(families.file, batch_rows=_READ_ROWS):
        inside = (families.rows >= start) & (families.rows < start + table.num_rows)
        hosts += table.take(pa.array(families.rows[inside] - start)).to_pylist()
        usable = (label_rows(table).label == 1) & (filter_rows(table) == "")
        usable &= ~is_counterfactual(table)
        some = np.flatnonzero(usable)[: sample - taken]
        lenses.append(table[STAMP_COLUMN].take(pa.array(some)))
        taken += some.size
        start += table.num_rows
    return hosts, pa.chunked_array([chunk for part in lenses for chunk in part.chunks], pa.binary())


def _decoded(
    hosts: Sequence[Columns], skipped: Counter[str], kinds: int
) -> dict[int, NDArray[np.float32]]:
    """Pixels of the hosts that have some, by position; the others are counted."""
    pixels = {}
    for number, columns in enumerate(hosts):
        stamp = np.empty(STAMP_SHAPE, np.float32)
        reason = decode(columns[STAMP_COLUMN], stamp)
        if reason is None and not (measure_host(stamp).sky_sigma > 0).all():
            reason = RejectReason.CONSTANT_BAND
        if reason is None:
            pixels[number] = stamp
        else:
            skipped[f"host/{reason}"] += kinds
    return pixels


def _stamps_of(blobs: pa.ChunkedArray) -> list[NDArray[np.float32]]:
    found = []
    for blob in blobs:
        stamp = np.empty(STAMP_SHAPE, np.float32)
        if decode(blob.as_py(), stamp) is None:
            found.append(stamp)
    return found


def _matched(
    families: Families, hosts: Sequence[Columns], pixels: Mapping[int, NDArray[np.float32]]
) -> Iterator[tuple[Host, Columns, Columns, NDArray[np.float64]]]:
    """Hosts with their donors: the brighter host gets the donor with the brighter galaxy.

    A source is so many magnitudes fainter than its lens; arcs and hosts drawn independently would
    differ from lenses in how the two go together.
    """
    measured = {number: measure_host(stamp) for number, stamp in pixels.items()}
    donors = families.donors.to_pylist()
    by_galaxy = sorted(range(len(donors)), key=lambda number: _galaxy_flux(donors[number]))
    by_flux = sorted(measured, key=lambda number: float(measured[number].flux[BANDS.index("r")]))
    # Hosts without pixels leave donors over: those in between.
    chosen = np.linspace(0, len(donors) - 1, len(by_flux)).round().astype(int)
    donor_of = {host: donors[by_galaxy[rank]] for host, rank in zip(by_flux, chosen, strict=True)}
    for number, host in measured.items():
        yield host, hosts[number], donor_of[number], families.fwhm_arcsec[number]


def _galaxy_flux(donor: Columns) -> float:
    """Flux of a donor's galaxy in r as far as its columns tell: any order of it will do."""
    magnification, dmag = donor.get("magnification"), donor.get("src_dmag")
    flux = float(donor[FLUX_COLUMN])
    return flux / (magnification or 1.0) * 10 ** (0.4 * (dmag or 0.0))


def _family(
    host: Host,
    columns: Columns,
    donor: Columns,
    fwhm_arcsec: NDArray[np.float64],
    making: Making,
    skipped: Counter[str],
) -> Iterator[tuple[Columns, NDArray[np.float32]]]:
    """Row and pixels of each kind."""
    identity = f"{making.seed}|{columns['task_id']}|{donor['task_id']}"
    words = np.frombuffer(hashlib.sha256(identity.encode()).digest(), np.uint32)
    white = None
    if making.photon_noise:
        # One field for all: within a family the kinds differ in where the light lies alone.
        shape = (len(BANDS), STAMP_SIZE + 2, STAMP_SIZE + 2)
        white = np.random.default_rng(words).standard_normal(shape, np.float32)
    lens, flux = lens_of(donor), flux_of(donor)
    arc, transfer = arc_of(lens), psf_transfer(fwhm_arcsec, making.psf)
    for number, kind in enumerate(making.kinds):
        if kind == "scattered" and donor["theta_e_arcsec"] < SCATTER_LEAST * fwhm_arcsec[1]:
            skipped[f"{kind}/{UNRESOLVED}"] += 1
            continue
        rng = np.random.default_rng([*words, number])
        light = on_pixels(draw_light(kind, rng, lens, arc), host.x_px, host.y_px)
        stamp = add_light(host, light, flux, transfer, white)
        row = columns | {STAMP_COLUMN: encode_stamp(stamp)}
        if kind == LENSED:
            row |= {name: donor[name] for name in LEAKING_COLUMNS if name in donor}
            row |= dict(zip(FWHM_COLUMNS, fwhm_arcsec.tolist(), strict=True))
            row["arc_snr"] = peak_snr(host, light, flux, transfer)
        row["task_id"] = hashlib.sha256(f"{kind}|{identity}".encode()).hexdigest()
        row |= {COUNTERFACTUAL: kind, HOST_TASK: columns["task_id"], DONOR_TASK: donor["task_id"]}
        yield row, stamp


def lens_of(donor: Columns) -> Lens:
    """The lens and the source of a donor; what is null is round, or not sheared."""
    model = str(donor["lens_model"])
    lens = Lens(
        lens_model=model,
        theta_e_arcsec=float(donor["theta_e_arcsec"]),
        lens_e=0.0 if model == "SIS" else float(donor["lens_e"]),
        lens_phi_rad=float(donor.get("lens_phi_rad") or 0.0),
        shear=float(donor["shear"]),
        shear_phi_rad=float(donor.get("shear_phi_rad") or 0.0),
        src_dmag=float(donor["src_dmag"]),
        src_reff_arcsec=float(donor["src_reff_arcsec"]),
        src_e=float(donor["src_e"]),
        src_phi_rad=float(donor["src_phi_rad"]),
        src_x_arcsec=float(donor["src_x_arcsec"]),
        src_y_arcsec=float(donor["src_y_arcsec"]),
    )
    return from_phase4c(lens)


def flux_of(donor: Columns) -> NDArray[np.float64]:
    """Flux of a donor's arc in each band, nanomaggies; shape (bands,)."""
    return band_fluxes(donor[FLUX_COLUMN], [donor[name] for name in SOURCE_COLOURS])


def _parquet(records: list[Columns], families: Families) -> bytes:
    """A part file in the format of the source; what its folders state is not in it."""
    stated = {name for name, _ in families.file.stated}
    schema = families.source.schema
    for name in (COUNTERFACTUAL, HOST_TASK, DONOR_TASK):
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.string()))
    schema = pa.schema([column for column in schema if column.name not in stated])
    light = [name for name in schema.names if name != STAMP_COLUMN]
    table = pa.Table.from_pylist(records, schema)
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="snappy", row_group_size=_GROUP_ROWS, use_dictionary=light,
        write_statistics=light, write_batch_size=32, write_page_checksum=True,
    )  # fmt: skip
    return buffer.getvalue()
