"""The same few rows in every format in which people keep tables."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units
from astropy.io import fits
from astropy.table import MaskedColumn, Table

ROWS = {"key": ["0012", "b c", None], "n": [5, -3, 7], "x": [0.5, -1e-3, None]}


def write_all(folder):
    """The same rows in every format that others write."""
    masks = {name: [value is None for value in values] for name, values in ROWS.items()}
    filled = {"key": ["0012", "b c", ""], "n": ROWS["n"], "x": [0.5, -1e-3, 0.0]}
    theirs = Table({name: MaskedColumn(filled[name], mask=masks[name], name=name) for name in ROWS})
    theirs["x"].unit = units.deg
    theirs.write(folder / "t.vot", format="votable")
    theirs.write(folder / "binary.xml", format="votable", tabledata_format="binary2")
    theirs.write(folder / "t.ecsv", format="ascii.ecsv")
    theirs.write(folder / "t.fits")
    columns = [fits.Column("key", "A4", array=filled["key"]),
               fits.Column("n", "I8", array=[5, -3, 7]),
               fits.Column("x", "E15.7", array=[0.5, -1e-3, np.nan])]  # fmt: skip
    fits.TableHDU.from_columns(columns).writeto(folder / "ascii.fit")
    pq.write_table(pa.table(ROWS), folder / "t.parquet")
    lines = ["key,n,x", "0012,5,0.5", "b c,-3,-0.001", ",7,"]
    texts = {"t.csv": ",", "t.tsv": "\t", "semicolon.csv": ";", "bar.txt": "|"}
    for name, separator in texts.items():
        (folder / name).write_text("\n".join(lines).replace(",", separator) + "\n")
    (folder / "decimal.csv").write_text("key;n;x\r\n0012;5;0,5\r\nb c;-3;-0,001\r\n;7;\r\n")
    for name in ("t.vot", "t.ecsv", "t.fits", "t.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    (folder / "fits-by-its-bytes").write_bytes((folder / "t.fits").read_bytes())
    parts = folder / "parts"
    parts.mkdir()
    pq.write_table(pa.table(ROWS).slice(0, 1), parts / "part-00000-c000.snappy.parquet")
    pq.write_table(pa.table(ROWS).slice(1), parts / "part-00001-c000.snappy.parquet")
    (parts / "_SUCCESS").touch()
    (parts / ".part-00000.crc").write_bytes(b"crc")
