"""Which sources are catalogues, what their rows are called, and how labels are read."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from lensprep.errors import ConfigError, InputError
from lensprep.source.catalog import CutoutSource, headings, is_catalog, open_catalogs
from lensprep.source.survey import DECALS_SURVEY
from tests.phase4c import tiny_pixels, tiny_tree


def write_catalog(path, rows, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(tiny_pixels(1).repeat(min(rows, 2), 0)):
        fits.writeto(path.parent / f"c{number}.fits", image, overwrite=True)
    table = {
        "key": [f"k{n}" for n in range(rows)],
        "file": [f"c{n % 2}.fits" for n in range(rows)],
        "ra": np.linspace(0, 300, rows),
        "dec": np.zeros(rows),
        "label": [1] * rows,
        **columns,
    }
    names = list(table)
    lines = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    path.write_text("\n".join([",".join(names), *lines]))
    return path


def opened(*paths, **settings):
    settings = {"columns": {}, "grade_lens": (), **settings}
    return open_catalogs(paths, [], lambda _: None, survey=DECALS_SURVEY, **settings)


def test_a_table_without_stamps_is_a_catalogue_and_a_tree_is_none(tmp_path):
    tree = tiny_tree(tmp_path, 12)
    part = next(tree.rglob("*.parquet"))
    pq.write_table(pa.table({"ra": [1.0], "dec": [2.0]}), tmp_path / "positions.parquet")
    (tmp_path / "a.csv").write_text("ra,dec\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "shards.tar").write_bytes(b"")
    is_one = {
        name: is_catalog(path, DECALS_SURVEY)
        for name, path in {
            "tree": tree,
            "part": part,
            **{path.name: path for path in tmp_path.iterdir() if path.is_file()},
        }.items()
    }
    assert {name for name, found in is_one.items() if found} == {"a.csv", "positions.parquet"}


def test_catalogues_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [write_catalog(tmp_path / folder / "found.csv", 2) for folder in "ab"]
    names = [catalog.name for catalog in opened(*reversed(paths))]
    assert names == ["a/found", "b/found"]
    with pytest.raises(ConfigError, match=r"a/found\.csv is named twice"):
        opened(paths[0], paths[0])


@pytest.mark.parametrize(
    ("text", "label"),
    [("1", 1), ("1.0", 1), (" Lens", 1), ("TRUE", 1), ("0", 0), ("non-lens", 0), ("nonlens", 0)]
    + [(odd, -1) for odd in ("2", "0.5", "lensed", "not", "unknown", "-1", "10", "")],
)
def test_labels_are_a_closed_map(tmp_path, text, label):
    # Beside a text, or pyarrow reads numbers.
    path = write_catalog(tmp_path / "found.csv", 2, label=[text, "lens"])
    (catalog,) = opened(path)
    assert catalog.facts["label"].to_pylist() == [label, 1]
    assert catalog.facts["reason"].to_pylist() == ["" if label >= 0 else "unknown_label", ""]
    model = {1: "LENS", 0: "NONLENS", -1: None}[label]
    assert catalog.table["lens_model"].to_pylist() == [model, "LENS"]


@pytest.mark.parametrize("labels", [[True, False], [1.0, 0.0], ["yes", "no"]])
def test_labels_of_every_type_are_read(tmp_path, labels):
    path = write_catalog(tmp_path / "found.csv", 2, label=labels)
    (catalog,) = opened(path)
    assert catalog.facts["label"].to_pylist() == [1, 0]


def test_columns_that_conversion_makes_itself_are_renamed(tmp_path):
    path = write_catalog(
        tmp_path / "found.csv", 2, pixel_hash=["a", "b"], lens_model=["SIE", "x"],
        catalog_pixel_hash=["c", "d"],
    )  # fmt: skip
    (catalog,) = opened(path)
    assert catalog.table["catalog_catalog_pixel_hash"].to_pylist() == ["a", "b"]
    assert catalog.table["catalog_pixel_hash"].to_pylist() == ["c", "d"]
    assert catalog.table["lens_model"].to_pylist() == ["LENS", "LENS"]


def test_what_was_named_must_be_there(tmp_path):
    path = write_catalog(tmp_path / "found.csv", 2)
    with pytest.raises(ConfigError, match=r"No catalogue has a column 'RA_DEG'"):
        opened(path, columns={"ra": "RA_DEG"})
    with pytest.raises(InputError, match=r"neither a label nor a grade.*--columns label=") as bare:
        opened(write_catalog(tmp_path / "bare.csv", 2), columns={"kind": "label"})
    assert "no_cutout" not in str(bare.value)  # a column of ours, not of the table
    assert headings(path) == ["key", "file", "ra", "dec", "label"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"region_split": ["train", "dev"]}, "region_split is 'dev'"),
        ({"region_id": [1, 2**40]}, "no whole number of 32 bits"),
        ({"region_id": ["a", "b"]}, "no whole number of 32 bits"),
    ],
)
def test_regions_and_splits_that_make_no_sense_are_refused(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        opened(write_catalog(tmp_path / "found.csv", 2, **columns))


def test_a_part_carries_its_own_rows_alone(tmp_path):
    catalogs = opened(write_catalog(tmp_path / "found.csv", 3000))
    source = CutoutSource.of(None, catalogs, "found.csv", DECALS_SURVEY)
    assert source.rows == 3000
    assert [part.first for part in source.files][:3] == [0, 128, 256]
    sizes = [len(pickle.dumps(part)) for part in source.files]
    assert max(sizes) < 3 * len(pickle.dumps(source.files[0].table.slice(0, 0))) + 60_000
    assert sum(part.rows for part in source.files) == 3000


def test_the_digest_covers_rows_and_sizes_of_files(tmp_path):
    def digest():
        catalogs = opened(tmp_path / "found.csv")
        return CutoutSource.of(None, catalogs, "", DECALS_SURVEY).digest()

    write_catalog(tmp_path / "found.csv", 2)
    before = digest()
    write_catalog(tmp_path / "found.csv", 2, label=[1, 0])
    assert digest() != before
    write_catalog(tmp_path / "found.csv", 2)
    assert digest() == before
    with (tmp_path / "c0.fits").open("ab") as file:
        file.write(bytes(2880))
    assert digest() != before
