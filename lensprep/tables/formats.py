"""The formats of tables: which one a file has, and its columns as Arrow's.

    table_format(path, ".fits")                   parquet, fits, votable, ecsv or text
    read_columns(path, suffix, plan, text)        columns of a plan, facts, all headings
    read_pieces(path, suffix, "embedding")        one column, piece by piece

The first bytes decide the format, or the suffix where they do not.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.tables.columns import plain_types
from lensprep.tables.text import Plan, infer_type, open_bytes, read_text, with_units

METADATA_KEY: Final = b"lenstrain"
"""Key of parquet's metadata, and name of FITS's extension and of a VOTable's INFO, that say what
made a table."""
FORMATS: Final = "parquet, FITS, VOTable, ECSV, or text such as CSV"

_SUFFIXES: Final = {
    ".parquet": "parquet", ".fits": "fits", ".fit": "fits", ".vot": "votable",
    ".votable": "votable", ".xml": "votable", ".ecsv": "ecsv",
}  # fmt: skip


def table_format(path: Path, suffix: str) -> str:
    """What a file is: parquet, fits, votable, ecsv or text.

    Raises
    ------
    ValueError
        If it is a zip archive, as a spreadsheet is.
    """
    with open_bytes(path) as file:
        head = file.read(512)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, kind in ((b"SIMPLE  =", "fits"), (b"# %ECSV", "ecsv"), (b"<?xml", "votable"),
                       (b"<VOTABLE", "votable"), (b"PAR1", "parquet")):  # fmt: skip
        if start.startswith(mark):
            return kind
    if head.startswith(b"PK\x03\x04"):
        raise ValueError("it is a zip archive, as spreadsheets (.xlsx, .ods) are. Save it as CSV.")
    return _SUFFIXES.get(suffix.removesuffix(".gz"), "text")


def read_columns(
    path: Path, suffix: str, plan: Plan, text: Sequence[str] = ()
) -> tuple[pa.Table, bytes, list[str]]:
    """Columns of a file, or of all parts of a folder.

    Parameters
    ----------
    path : Path
    suffix : str
        Of its name, ``.fits.gz`` say: what is read from a store has no such name here.
    plan : callable
        From all headings to those to read (the values of what it returns are not used).
    text : sequence of str
        Columns of text files that are text, whatever they look like.

    Returns
    -------
    table : pyarrow.Table
        Under its own headings.
    facts : bytes
        What `lensprep.tables.writer` recorded, JSON; ``{}`` of foreign tables.
    names : list of str
        All headings.

    Raises
    ------
    ValueError
        If it is no table. Foreign parsers raise what they like.
    """
    kind = "parquet" if path.is_dir() else table_format(path, suffix)
    if kind == "parquet":
        return _read_parquet(path, plan)
    if kind == "text":
        table, names = read_text(path, plan, text)
        return table, b"{}", names
    with warnings.catch_warnings(), open_bytes(path) as file:
        warnings.simplefilter("ignore")  # of units and names that others write
        data = io.BytesIO(file.read())  # to its end, where gzip keeps its checksum
        return _read_fits(data, plan) if kind == "fits" else _read_astropy(data, kind, plan)


def read_pieces(path: Path, suffix: str, name: str) -> Iterator[pa.RecordBatch]:
    """Pieces of one column; none if it is not there, or the format has no vectors."""
    kind = "parquet" if path.is_dir() else table_format(path, suffix)
    if kind == "parquet":
        for file in table_parts(path) if path.is_dir() else [path]:
            parquet = pq.ParquetFile(file)
            if name in parquet.schema_arrow.names:
                yield from parquet.iter_batches(columns=[name])
    elif kind != "text":
        table, *_ = read_columns(path, suffix, lambda names: {name: name} if name in names else {})
        yield from table.to_batches()


def _read_parquet(path: Path, plan: Plan) -> tuple[pa.Table, bytes, list[str]]:
    """A file, or all parts of a folder; partition columns stand in the names of its subfolders."""
    paths = table_parts(path) if path.is_dir() else [path]
    files = [pq.ParquetFile(each) for each in paths]
    inside = [file.schema_arrow.names for file in files]
    keys = [
        _partition(each.relative_to(path), there) for each, there in zip(paths, inside, strict=True)
    ]
    names: list[str] = []
    for there, stated in zip(inside, keys, strict=True):
        names += [name for name in (*there, *stated) if name not in names]
    chosen, tables = plan(names), []
    for file, there, stated in zip(files, inside, keys, strict=True):
        table = file.read(columns=[name for name in chosen if name in there])
        for name in stated.keys() & chosen.keys():
            table = table.append_column(name, pa.array([stated[name]] * len(table), pa.string()))
        tables.append(plain_types(table))
    table = pa.concat_tables(tables, promote_options="permissive")
    for name in chosen.keys() & set().union(*keys):
        position = table.column_names.index(name)
        table = table.set_column(position, name, infer_type(table[name]))
    return table, (files[0].schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"), names


def table_parts(folder: Path) -> list[Path]:
    """Parquet files of a folder that something finished writing, in the order of their names.

    Raises
    ------
    ValueError
        If a job did not finish, there is none, or not every file is part of the table.
    """
    if (folder / "_temporary").exists():
        raise ValueError("the Spark job that wrote it did not finish: it has a folder _temporary.")
    for mark, what in (("_delta_log", "a Delta"), ("metadata/*.metadata.json", "an Iceberg")):
        if next(folder.glob(mark), None):
            raise ValueError(
                f"it is {what} table, of which old files stay in the folder. Write its rows to "
                "parquet."
            )
    found = sorted(
        path
        for path in folder.rglob("*.parquet")
        if not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError("it is a folder without parquet files.")
    return found


def _partition(part: Path, inside: Sequence[str]) -> dict[str, str | None]:
    """What the subfolders say (``region_id=5/split=test``) of columns that a part file lacks."""
    pairs = (folder.split("=", 1) for folder in part.parts[:-1] if "=" in folder)
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            for name, value in pairs if name not in inside}  # fmt: skip


def _read_fits(data: io.BytesIO, plan: Plan) -> tuple[pa.Table, bytes, list[str]]:
    """The first table of a file, and what made it; only in our own files is text escaped."""
    from astropy.io import fits

    with fits.open(data, memmap=False, character_as_bytes=True) as hdus:
        name = METADATA_KEY.decode().upper()
        ours = name in hdus
        raw = bytes(hdus[name].data["json"][0]) if ours else b"{}"
        hdu = next((h for h in hdus if isinstance(h, (fits.BinTableHDU, fits.TableHDU))), None)
        if hdu is None:
            raise ValueError("it holds no table.")
        names, columns = list(hdu.columns.names), {}
        for each in plan(names):
            said = hdu.columns[each]
            columns[each] = (_to_arrow(hdu.data[each], said.null, ours=ours), said.unit)
    return with_units(columns), raw, names


def _read_astropy(data: io.BytesIO, kind: str, plan: Plan) -> tuple[pa.Table, bytes, list[str]]:
    """A VOTable or ECSV, and what made it; names and text of our own VOTables are exact."""
    from astropy.io.votable import parse
    from astropy.table import Table
    from astropy.table.serialize import represent_mixins_as_columns

    raw = b""
    if kind == "votable":
        file = parse(data, verify="ignore")
        said = [info.value for info in file.infos if info.name == METADATA_KEY.decode()]
        raw = "".join(said).encode()
        found = Table.read(file, format="votable", use_names_over_ids=bool(raw))
    else:
        lines = data.getvalue().decode("utf-8-sig").splitlines()
        found = Table.read(lines, format="ascii.ecsv")
    found = represent_mixins_as_columns(found)
    names, columns = list(found.colnames), {}
    for name in plan(names):
        columns[name] = _to_arrow(found[name], ours=bool(raw)), found[name].unit
    return with_units(columns), raw or b"{}", names


def _to_arrow(column: Any, null: Any = None, *, ours: bool = False) -> pa.Array:
    """A column of astropy's; what is masked, `null`, NaN or empty text is null."""
    values, mask = np.ma.getdata(column), np.ma.getmaskarray(column)
    values = np.asarray(values)
    if values.dtype.kind in "SUO" and values.ndim == 1:
        cells = [_decode(cell, ours) for cell in values]
        if all(isinstance(cell, str) for cell in cells):
            return pa.array([c or None for c in cells], pa.string(), mask=mask)
        return pa.array([np.asarray(cell).tolist() for cell in cells])
    values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim > 1:
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    if null is not None:
        mask = mask | (values == null)
    if values.dtype.kind == "f":
        mask = mask | np.isnan(values)
    return pa.array(values, mask=mask)


def _decode(cell: Any, ours: bool) -> Any:
    """Text without the blanks that formats fill it up with; in our own it is exact."""
    if isinstance(cell, bytes):
        text = cell.rstrip()
        return text.decode("unicode_escape") if ours else text.decode("utf-8", "replace")
    return cell.rstrip() if isinstance(cell, str) and not ours else cell
