"""A small published folder for the tests of its metadata: real tables, and a real dataset."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.dataset import open_dataset
from lenstrain.publish.crate import CRATE_NAME, crate
from lenstrain.publish.croissant import CROISSANT_NAME, croissant
from lenstrain.publish.facts import FOLDER, About, Column, Item, Publication, Step
from tests.datasets import tiny_dataset
from tests.scoretables import make_table

ABOUT = About(
    title="Finder of the tests",
    description="What the tests publish.",
    license="CC-BY-4.0",
    authors=("Ada Ray <0000-0002-1825-0097>", "Li, Bo"),
    publisher="An archive <https://archive.example>",
    url="https://doi.org/10.5072/1",
    data_license="CC0-1.0",
    article="https://doi.org/10.5072/2",
)
SCORES, COMPLETENESS = "scores/test.parquet", "completeness/completeness.parquet"
TAR, SIDECAR = "sample/test/test-000000.tar", "sample/test/test-000000.parquet"
MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".tar": "application/x-tar",
    ".json": "application/json",
    ".safetensors": "application/octet-stream",
}
UNITS = {"theta_e_arcsec": "arcsec", "psfsize_r": "arcsec"}
SOFTWARE = {"lenstrain": "0.2.0", "python": "3.11.7", "commit": "0123abc"}


def write_folder(root: Path) -> Path:
    """Write what is published, without its metadata; the dataset stays outside, beside it."""
    tiny_dataset(root.parent, {"train": 12, "test": 9}, name="whole")
    tiny_dataset(root, {"test": 5}, name="sample")
    scores = make_table(rows=30, regions=5)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60, dtype=np.float32)), 2)
    scores = scores.append_column("a <b> é", pairs)
    # Of a type that Croissant is not told of.
    days = pa.array([0, 1], pa.date32())
    completeness = pa.table({"n": [3, 4], "completeness": [0.25, None], "a day": days})
    for name, table in ((SCORES, scores), (COMPLETENESS, completeness)):
        (root / name).parent.mkdir()
        pq.write_table(table, root / name)
    (root / "weights").mkdir()
    (root / "weights/finder.safetensors").write_bytes(b"\0" * 8)
    return root


def publication(root: Path, about: About = ABOUT, faults: tuple[str, ...] = ()) -> Publication:
    """All facts of a folder that `write_folder` wrote."""
    files = sorted(path for path in root.rglob("*") if path.suffix in MEDIA_TYPES)
    dataset = open_dataset(root.parent / "whole").manifest
    digest = "ab" * 32
    return Publication(
        about=about,
        created="2026-01-02T03:04:05+00:00",
        version="0.2.0",
        faults=faults,
        items=(
            *(_item(path, root) for path in files if path.parent != root),
            Item(id="#source", title="Listing of the source", sha256=digest),
            Item(id="#dataset", title="Dataset", sha256=dataset.dataset_id),
            Item(id="#checkpoint", title="Checkpoint", sha256=digest, bytes=8),
        ),
        steps=(
            Step(
                id="convert",
                title="Converted the source",
                software={"lensprep": "0.2.0"},
                inputs=("#source",),
                outputs=("#dataset",),
            ),
            _step("train", ("#dataset",), ("#checkpoint",)),
            _step("score", ("#checkpoint", "#dataset"), (SCORES,)),
            _step("evaluate", (SCORES,), (COMPLETENESS,)),
            _step("publish", (SCORES, COMPLETENESS), (FOLDER,)),
        ),
        manifest=dataset,
        metrics={
            "notes": [
                {"severity": "info", "text": "Nothing to fear."},
                {"severity": "warning", "text": "Few non-lenses."},
            ]
        },
    )


def _item(path: Path, root: Path) -> Item:
    content = path.read_bytes()
    fields = pq.read_schema(path) if path.suffix == ".parquet" else ()
    return Item(
        id=path.relative_to(root).as_posix(),
        title=f"What {path.stem} says",
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        media_type=MEDIA_TYPES[path.suffix],
        columns=tuple(
            Column(field.name, str(field.type), "Of a stamp", UNITS.get(field.name, ""))
            for field in fields
        ),
    )


def _step(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Step:
    return Step(
        id=name,
        title=f"Did {name}",
        software=SOFTWARE,
        inputs=inputs,
        outputs=outputs,
        ended="2026-01-02T03:04:05+00:00",
    )


def write_metadata(root: Path, facts: Publication) -> None:
    """Write both metadata files into the folder."""
    for name, content in ((CROISSANT_NAME, croissant(facts)), (CRATE_NAME, crate(facts))):
        (root / name).write_text(json.dumps(content))
