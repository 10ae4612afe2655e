"""A dataset as a notebook sees it: what it prints, tables, stamps by key, place or condition."""

import io

import astropy.units as u
import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord

from lensprep.dataset import NormalizationSpec, open_dataset
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.writer import write_dataset
from lensprep.errors import ConfigError, DatasetError
from lensprep.transfer import upload
from tests.datasets import SPEC, tiny_dataset, tiny_pixels, tiny_table
from tests.faultproxy import FaultProxy

ROWS = {"train": 100, "val": 20}


def table_of(split):
    """Rows that lie 2 arcsec from one to the next, across 0h; two of them nobody knows where."""
    rows = ROWS[split]
    arcsec = 2.0 * np.arange(rows) - rows
    ra = arcsec / 3600 / np.cos(np.radians(60)) % 360
    unknown = np.isin(np.arange(rows), [1, 2])
    kind = np.where(np.arange(rows) % 10 == 0, "unlensed", None)
    table = tiny_table(rows, split)
    table = table.append_column("ra", pa.array(ra, mask=unknown))
    table = table.append_column("dec", pa.array(np.full(rows, 60.0 if split == "train" else -60.0)))
    return table.append_column("counterfactual", pa.array(kind.tolist()))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "ds"
    splits = {name: (tiny_pixels(rows), table_of(name)) for name, rows in ROWS.items()}
    write_dataset(folder, splits, SPEC, shard_rows=32)
    return folder


@pytest.fixture(scope="module")
def dataset(root):
    return open_dataset(root)


def test_a_dataset_and_a_split_say_what_is_in_them(root, dataset):
    text = repr(dataset)
    assert "decals, grz, 64 x 64 pixels of 0.262 arcsec, mad_stamp clipped at 10" in text
    assert f"{root}, id {dataset.dataset_id[:12]}" in text
    lines = [line.split() for line in text.splitlines()[-2:]]
    # Every tenth row is a counterfactual, all of them non-lenses.
    assert lines[0] == ["train", "100", "50", "40", "10", "34", "4"]
    assert lines[1] == ["val", "20", "10", "8", "2", "7", "1"]
    assert repr(dataset["val"]).splitlines()[-1].split() == lines[1]
    assert (list(dataset), len(dataset["val"])) == (["train", "val"], 20)
    assert "val-000000.tar" not in repr(dataset.split("val"))
    with pytest.raises(DatasetError, match="no split 'tset'; it has: train, val"):
        dataset["tset"]


def test_a_table_has_the_columns_and_rows_that_are_asked_for(dataset):
    train = dataset["train"]
    whole = train.table()
    assert whole.select(train.columns).equals(dataset.read_sidecar("train"))
    assert whole["index"].to_pylist() == list(range(100))
    some = train.table(["key", "index"], where="label == 1 and theta_e_arcsec > 0.8")
    wanted = [row for row in whole.to_pylist() if row["label"] == 1 and row["theta_e_arcsec"] > 0.8]
    assert 0 < len(wanted) < 50
    assert some.to_pylist() == [{"key": row["key"], "index": row["index"]} for row in wanted]
    both = dataset.table(["split"])
    assert both["split"].to_pylist() == ["train"] * 100 + ["val"] * 20
    assert dataset.table(["key"], where="split == 'val' and index < 3").num_rows == 3


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda d: d.table(where="theta_e > 1"), ConfigError, "Did you mean theta_e_arcsec"),
        (lambda d: d.stamps("labl == 1"), ConfigError, "Did you mean label"),
        (lambda d: d.table(["theta_e"]), DatasetError, "no column 'theta_e'; it has: theta_e_arc"),
        (lambda d: d.stamps(count=-1), ConfigError, "0 stamps or more"),
        (lambda d: d.near(400, 0, 1), ConfigError, "no circle on the sky: degrees"),
        (lambda d: d.near(0, float("nan"), 1), ConfigError, "no circle on the sky"),
        (
            lambda d: d["val"].stamp(f"1{7:031x}"),
            DatasetError,
            r"no stamp .* It is in train\.",
        ),
        (lambda d: d.stamp("1" + "0" * 20), DatasetError, r"Keys that begin like it: 10{20}"),
        (lambda d: d.stamp("x"), DatasetError, r"table\(\[\"key\"\]\) lists them"),
    ],
)
def test_an_error_is_one_line_that_names_the_remedy(dataset, ask, error, message):
    with pytest.raises(error, match=message) as caught:
        ask(dataset)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_positions_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"no positions .*dec and ra.* Select by key"):
        open_dataset(tiny_dataset(tmp_path, 8)).near(0, 0, 1)


def test_the_stamp_of_a_key_is_the_one_in_the_tar(dataset):
    row = dataset["train"].table().slice(77, 1).to_pylist()[0]
    stamp = dataset.stamp(row["key"])
    assert stamp.row == row
    assert (stamp.key, stamp.label, stamp.ra, stamp.dec) == (row["key"], 1, row["ra"], 60.0)
    assert stamp.pixels.dtype == np.float16
    np.testing.assert_array_equal(stamp.pixels, dataset.read_pixels("train", [77])[0])
    assert f"{row['key']} (label 1, theta_E" in repr(stamp)
    assert "train 77" in repr(stamp)


def test_stamps_by_condition_are_a_sample_of_those_that_fulfil_it(dataset):
    found = dataset["train"].stamps("label == 1", count=40, seed=1)
    rows = found.table["index"].to_numpy()
    assert len(found) == len({*rows}) == 40
    assert {stamp.label for stamp in found} == {1}
    np.testing.assert_array_equal(found.pixels, dataset.read_pixels("train", rows))
    assert rows.tolist() != dataset["train"].stamps("label == 1", 40, 2).table["index"].to_pylist()
    assert len(dataset.stamps("label == 1", count=1000)) == 60
    assert [s.key for s in found[:3]] == found.table["key"].to_pylist()[:3]
    assert found[-1].key == found.table["key"][39].as_py()


def test_nothing_found_is_no_error_and_is_drawn_as_nothing(dataset):
    none = dataset.stamps("theta_e_arcsec > 100")
    assert (len(none), list(none)) == (0, [])
    assert [text.get_text() for text in none.plot().texts] == ["no stamps"]
    assert len(dataset.near(90, 0, 10)) == len(dataset.stamps(count=0)) == 0


def test_stamps_near_a_position_are_those_that_astropy_finds_nearest_first(dataset):
    ra, dec, radius = 359.999, 60.0005, 25.0
    found = dataset.near(ra, dec, radius)
    rows = dataset.table(["key", "ra", "dec"], where="ra is not null")
    places = SkyCoord(rows["ra"].to_numpy(), rows["dec"].to_numpy(), unit="deg")
    away = places.separation(SkyCoord(ra, dec, unit="deg")).to_value(u.arcsec)
    order = [row for row in np.argsort(away) if away[row] <= radius]
    assert len(order) > 15
    assert {*np.sign(found.table["ra"].to_numpy() - 180)} == {-1, 1}  # across 0h
    assert found.table["key"].to_pylist() == [rows["key"][int(row)].as_py() for row in order]
    np.testing.assert_allclose(found.table["separation_arcsec"], away[order], atol=1e-6)
    index = found.table["index"].to_numpy()
    np.testing.assert_array_equal(found.pixels, dataset.read_pixels("train", index))
    assert "arcsec away" in repr(found[0])
    assert len(dataset["val"].near(ra, dec, radius)) == 0


@pytest.mark.parametrize("mode", ["mad_stamp", "sqrt"])
def test_restored_pixels_are_fluxes(tmp_path, mode):
    table = tiny_table(4)
    for band in "grz":
        place = table.column_names.index(f"scale_{band}")
        table = table.set_column(place, f"scale_{band}", pa.array(np.full(4, 0.5, np.float32)))
    pixels = tiny_pixels(4).clip(-9, 9)
    spec = NormalizationSpec(mode=mode, clip=10.0)
    write_dataset(tmp_path / "ds", {"train": (pixels, table)}, spec, shard_rows=4)
    stamp = open_dataset(tmp_path / "ds").stamp(table["key"][1].as_py())
    value = pixels[1].astype(np.float32)
    flux = value * 0.5 if mode == "mad_stamp" else value * np.abs(value) * 0.5
    np.testing.assert_allclose(stamp.restored(), flux, rtol=1e-6)
    (axes,) = stamp.plot().axes
    np.testing.assert_array_equal(axes.images[0].get_array(), lupton_rgb(stamp.restored()))


def test_a_picture_has_every_stamp_in_order_and_a_notebook_shows_it(dataset):
    figure = dataset["train"].plot("index < 8", count=8)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    stamps = dataset["train"].stamps("index < 8", count=8)
    assert [text.replace("\n", "") for text in texts[1::2]] == stamps.table["key"].to_pylist()
    assert texts[0] == "label 0   unlensed"
    assert texts[2].startswith("label 1   θ_E ")
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    shown = matplotlib.image.imread(io.BytesIO(figure._repr_png_()))
    assert shown.std() > 0.1


def test_a_dataset_in_a_store_answers_alike_and_reads_what_it_needs(s3, root, dataset):
    upload(root, s3.uri, s3.options())
    with FaultProxy(s3.server.ports["https"]) as proxy:
        url = proxy.url.replace("http", "https")
        there = open_dataset(s3.uri, s3.options(endpoint_url=url))
        assert repr(there).splitlines()[2:] == repr(dataset).splitlines()[2:]
        assert (
            there["train"]
            .table(["key"], "label == 1")
            .equals(dataset["train"].table(["key"], "label == 1"))
        )
        sidecars = sum(shard.sidecar_bytes + 4000 for shard in there.split("train").shards)
        key = f"1{70:031x}"
        for ask in (lambda d: d["train"].near(0, 60, 3), lambda d: [d.stamp(key)]):
            before = proxy.bytes_down
            found = ask(there)
            read = proxy.bytes_down - before
            assert read < 2 * sidecars + 30_000 * len(found)  # of 2.7 MB of pixels
            assert len(found) == len(ask(dataset)) > 0
            for one, other in zip(found, ask(dataset), strict=True):
                assert one.row == other.row
                np.testing.assert_array_equal(one.pixels, other.pixels)
