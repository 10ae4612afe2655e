"""Geometries: where the bytes of their records lie, and what is none."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from lensprep.dataset import DECALS, Dataset, Geometry, layout
from lensprep.dataset.record import header_faults
from lensprep.errors import DatasetError
from lensprep.store import S3Options
from lensprep.transfer import download, upload
from tests.datasets import PAIR, tiny_dataset


def of_shape(bands, side):
    names = tuple("abcdefgh"[:bands])
    return replace(PAIR, bands=names, side=side, reference_band=names[0], sky_noise=(0.1,) * bands)


def test_decals_has_the_bytes_of_format_1():
    assert DECALS.format_version == 1
    assert (DECALS.stride, DECALS.payload_bytes, DECALS.json_offset) == (26_624, 24_576, 26_112)
    assert DECALS.shape == layout.STAMP_SHAPE
    assert DECALS.shard_bytes(3) == 3 * 26_624 + 1024
    assert DECALS.diagonal_arcsec == pytest.approx(23.71, abs=0.01)


@pytest.mark.parametrize(
    "change",
    [{"side": 65}, {"survey": "hsc"}, {"zero_point": 27.0}, {"reference_band": "g"},
     {"sky_noise": (1.0, 1.0, 1.0)}],
)  # fmt: skip
def test_what_format_1_does_not_say_takes_format_2(change):
    assert replace(DECALS, **change).format_version == 2
    assert replace(DECALS, pixel_scale_arcsec=0.26).format_version == 1  # which it says


@pytest.mark.parametrize(("bands", "side"), [(1, 33), (2, 32), (5, 64), (8, 41)])
def test_records_lie_where_tar_readers_find_them(tmp_path, bands, side):
    geometry = of_shape(bands, side)
    root = tiny_dataset(tmp_path, 3, geometry=geometry)
    dataset = Dataset.open(root)
    assert dataset.geometry == geometry
    shard = dataset.split("train").shards[0]
    with tarfile.open(root / shard.name) as tar:
        members = tar.getmembers()
    assert [(m.offset, m.offset_data, m.size) for m in members[::2]] == [
        (row * geometry.stride, row * geometry.stride + 512, geometry.npy_bytes) for row in range(3)
    ]
    assert [(m.offset, m.offset_data, m.size) for m in members[1::2]] == [
        (row * geometry.stride + geometry.json_header_offset,
         row * geometry.stride + geometry.json_offset, 512) for row in range(3)
    ]  # fmt: skip
    assert (root / shard.name).stat().st_size == geometry.shard_bytes(3)
    records = dataset.read_records(shard).copy()
    assert header_faults(records, geometry).tolist() == []
    records[1, geometry.json_offset - 1] ^= 1  # the last byte that is the writer's
    assert header_faults(records, geometry).tolist() == [1]


def test_a_manifest_alone_says_where_the_pixels_are(tmp_path):
    """As a reader would do it that knows nothing of this package."""
    root = tiny_dataset(tmp_path, 5, geometry=PAIR)
    manifest = json.loads((root / "manifest.json").read_text())
    grid, shard = manifest["geometry"], manifest["splits"]["train"]["shards"][0]
    raw = np.fromfile(root / shard["name"], np.uint8, shard["rows"] * grid["stride"])
    records = raw.reshape(shard["rows"], grid["stride"])
    pixels = records[:, grid["payload_offset"] :][:, : grid["payload_bytes"]].copy()
    pixels = pixels.view(grid["dtype"]).reshape(-1, *grid["shape"])
    np.testing.assert_array_equal(Dataset.open(root).read_pixels("train", range(5)), pixels)
    assert manifest["format_version"] == 2
    assert manifest["survey"]["sky_noise"] == {"nir": 0.02, "Y": 0.05}


def test_geometries_survive_json():
    for geometry in (DECALS, PAIR):
        assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    assert str(DECALS) == "decals, grz, 64 x 64 pixels of 0.262 arcsec"
    assert str(PAIR) == "pair, nir+Y, 32 x 32 pixels of 0.3 arcsec"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"survey": "a b"}, "survey: 'a b' is no name"),
        ({"survey": None}, "survey: None is no name"),
        ({"bands": ()}, "are not 1 to 8 different names"),
        ({"bands": tuple("abcdefghi")}, "are not 1 to 8 different names"),
        ({"bands": ("g", "G")}, "are not 1 to 8 different names"),
        ({"bands": ("g", "../r")}, "are not 1 to 8 different names"),
        ({"bands": ("g", 1)}, "are not 1 to 8 different names"),
        ({"side": 31}, "stamps of 31 pixels a side are not of 32 to 256"),
        ({"side": 257}, "stamps of 257 pixels"),
        ({"side": 64.0}, "side is 64.0, not a whole number"),
        ({"pixel_scale_arcsec": 0}, "is not positive"),
        ({"pixel_scale_arcsec": float("nan")}, "not a finite number"),
        ({"reference_band": "r"}, "reference_band: 'r' is no band"),
        ({"zero_point": "22.5"}, "zero_point is '22.5', not a finite number"),
        ({"sky_noise": (0.1,)}, "one number for each band"),
        ({"sky_noise": (0.1, -1.0)}, "sky_noise: -1.0 is not positive"),
    ],
)
def test_what_is_no_geometry_is_one_line(change, message):
    with pytest.raises(DatasetError, match=message) as caught:
        replace(PAIR, **change)
    assert "\n" not in str(caught.value)


def at(*path, **change):
    def apply(data):
        for name in path:
            data = data[name]
        data.update(change)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("survey"), "it has no entry 'survey'"),
        (at(survey="pair"), "survey is 'pair', not an object"),
        (at("survey", name=7), "survey: 7 is no name"),
        (lambda d: d["survey"].pop("zero_point"), "survey has no entry 'zero_point'"),
        (at("survey", zero_point=28.0), "altered"),
        (at("survey", reference_band="r"), "'r' is no band"),
        (at("survey", sky_noise=[1, 2]), "sky_noise is .*, not an object"),
        (lambda d: d["survey"]["sky_noise"].pop("Y"), "sky_noise has no entry 'Y'"),
        (at(pixel_scale_arcsec=-1), "is not positive"),
        (at(pixel_scale_arcsec=0.31), "altered"),
        (at(bands="nirY"), "bands is 'nirY', not a list"),
        (at(bands=[1, 2]), "no entry '1'"),
        (at(bands=[{}, "Y"]), "sky_noise has no entry"),
        (at(bands=["Y", "nir"]), "altered"),
        (at("geometry", shape=[2, 32, 31]), "31 pixels a side"),
        (at("geometry", shape=[2, 1 << 40, 1 << 40]), "pixels a side"),
        (at("geometry", shape=[3, 32, 32]), "record geometry is not that of format 2"),
        (at("geometry", shape=None), "side is None, not a whole number"),
        (at("geometry", shape=[]), r"side is \[\], not a whole number"),
        (lambda d: d["geometry"].pop("shape"), "geometry has no entry 'shape'"),
        (at("geometry", stride=26_624), "record geometry is not that of format 2"),
        (at("geometry", payload_offset=641), "record geometry is not that of format 2"),
        (at(format_version=1), "bands: .* are not g, r, z"),
        (at("normalization", mode="asinh_survey"), "no entry 'softening_nir'"),
        (at("normalization", mode="asinh_survey", parameters={"softening_g": 1.0}),
         "are softening_nir, softening_Y, not"),
        (lambda d: d["splits"]["train"]["shards"][0].update(bytes=26_624 * 5 + 1024),
         "cannot hold 5 rows"),
    ],
)  # fmt: skip
def test_an_altered_manifest_of_format_2_is_refused(tmp_path, change, message):
    root = tiny_dataset(tmp_path, 5, geometry=PAIR)
    data = json.loads((root / "manifest.json").read_text())
    change(data)
    (root / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset.open(root)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{root}/manifest.json")


@pytest.mark.parametrize(
    "change",
    [at(format_version=2), at("geometry", shape=[3, 32, 32]), at(bands=["g", "r", "i"])],
)
def test_format_1_is_of_decals_alone(tmp_path, change):
    root = tiny_dataset(tmp_path, 5)
    data = json.loads((root / "manifest.json").read_text())
    assert "survey" not in data
    change(data)
    (root / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=r"survey|geometry|bands"):
        Dataset.open(root)
    data |= {"survey": DECALS.survey_dict(), "format_version": 2}
    (root / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=r"not that of format 2|no entry 'i'"):
        Dataset.open(root)


def test_a_dataset_of_another_survey_travels_and_is_read_from_a_store(tmp_path, s3):
    root = tiny_dataset(tmp_path, {"train": 50, "val": 7}, 20, geometry=PAIR)
    options: S3Options = s3.options()
    upload(str(root), s3.uri, options)
    here, there = Dataset.open(root), Dataset.open(s3.uri, options)
    assert there.geometry == PAIR
    for rows in ([49, 0, 21, 21], range(50), []):
        found = there.read_pixels("train", rows)
        np.testing.assert_array_equal(found, here.read_pixels("train", rows))
    shard = here.split("train").shards[1]
    np.testing.assert_array_equal(there.read_records(shard, 3, 9), here.read_records(shard, 3, 9))
    download(s3.uri, str(tmp_path / "back"), options)
    assert Dataset.open(tmp_path / "back").dataset_id == here.dataset_id
