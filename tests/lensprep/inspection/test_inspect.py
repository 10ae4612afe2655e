"""Looking at datasets and shards: the numbers are those of the rows, whatever is looked at."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from rich.console import Console

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import PAYLOAD_OFFSET, RECORD_STRIDE, Dataset
from lensprep.dataset.layout import JSON_OFFSET
from lensprep.errors import DatasetError, ShardError
from lensprep.inspection.inspect import inspect_dataset
from lensprep.inspection.text import _bars, render_text
from lensprep.store import open_store
from tests.phase4c import tiny_counterfactuals, tiny_table, tiny_tree, write_tree

ROWS = 96


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    # one region on each side of 0h, to be joined over it
    tree = tiny_tree(folder, ROWS, ra=lambda i: 359.0 if i % 4 == 0 else 1.0 + i / 100)
    convert(str(tree), str(folder / "dataset"), ConvertConfig(shard_rows=20), workers=1)
    return folder / "dataset"


def text_of(inspection):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_text(inspection))
    return console.export_text()


def test_counts_are_those_of_the_manifest_and_of_the_rows(dataset):
    found = inspect_dataset(dataset)
    opened = Dataset.open(dataset)
    assert found.kind == "dataset"
    assert found.dataset_id == opened.dataset_id
    for name, facts in found.splits.items():
        table = opened.read_sidecar(name)
        label = table["label"].to_numpy()
        assert facts["rows"] == facts["statistics_rows"] == table.num_rows
        assert facts["classes"] == {"0": int((label == 0).sum()), "1": int((label == 1).sum())}
        assert facts["regions"] == len(set(table["region_id"].to_pylist()))
        assert facts["shards"] == len(opened.split(name).shards)
    assert sum(facts["rows"] for facts in found.splits.values()) == ROWS
    assert found.models == {"CONTROL": ROWS // 2, "SIE": ROWS // 2}
    assert found.manifest["account"]["accepted"] == ROWS


def test_statistics_are_by_class_and_count_nulls(dataset):
    opened = Dataset.open(dataset)
    found = inspect_dataset(dataset, split="train")
    table = opened.read_sidecar("train")
    label = table["label"].to_numpy()
    psf = table["psfsize_r"].to_numpy()
    for name in (0, 1):
        numbers = found.statistics["psfsize_r"][str(name)]
        assert numbers["median"] == pytest.approx(np.median(psf[label == name]))
        assert (numbers["min"], numbers["max"]) == (
            psf[label == name].min(),
            psf[label == name].max(),
        )
    assert found.statistics["arc_snr"]["0"] == {"n": 0, "nulls": int((label == 0).sum())}
    assert found.statistics["arc_snr"]["1"]["nulls"] == 0


def test_histograms_hold_every_finite_value(dataset):
    found = inspect_dataset(dataset)
    for name in ("theta_e_arcsec", "psfsize_r", "bad_pixel_frac"):
        histogram = found.histograms[name]
        assert len(histogram["edges"]) == len(histogram["0"]) + 1
        assert sum(histogram["0"]) == sum(histogram["1"]) == ROWS // 2
    assert sum(found.histograms["arc_snr"]["0"]) == 0


def test_pixel_statistics_are_those_of_the_stored_values(dataset):
    found = inspect_dataset(dataset, split="val")
    opened = Dataset.open(dataset)
    rows = opened.split("val").rows
    pixels = opened.read_pixels("val", np.arange(rows)).astype(np.float64)
    for number, band in enumerate("grz"):
        assert found.pixels[band]["mean"] == pytest.approx(pixels[:, number].mean())
        assert found.pixels[band]["std"] == pytest.approx(pixels[:, number].std())
        assert found.pixels[band]["max"] == pixels[:, number].max() <= 10
        at_clip = np.mean(np.abs(pixels[:, number]) >= 10)
        assert found.pixels[band]["at_clip"] == pytest.approx(at_clip)


def test_sky_extent_is_joined_over_0h(dataset):
    sky = inspect_dataset(dataset).sky["train"]
    assert sky["ra_from_deg"] == 359.0
    assert sky["ra_to_deg"] < 3
    assert sky["ra_width_deg"] == pytest.approx(sky["ra_to_deg"] + 1.0)


def test_shard_is_inspected_as_such(dataset):
    whole = inspect_dataset(dataset)
    tar = dataset / "train" / "train-000001.tar"
    found = inspect_dataset(tar)
    info = Dataset.open(dataset).split("train").shards[1]
    assert found.kind == "shard"
    assert list(found.splits) == ["train"]
    assert found.splits["train"]["rows"] == info.rows
    assert found.splits["train"]["bytes"] == tar.stat().st_size
    assert sum(found.splits["train"]["classes"].values()) == info.rows
    assert found.dataset_id == whole.dataset_id


def test_tar_alone_is_inspected_by_its_own_members(dataset, tmp_path):
    tar = shutil.copy(dataset / "val" / "val-000000.tar", tmp_path / "val-000000.tar")
    found = inspect_dataset(tar, sample=0)
    assert found.kind == "tar"
    (facts,) = found.splits.values()
    assert facts["rows"] == Dataset.open(dataset).split("val").shards[0].rows
    assert found.record["sidecar"] == {}
    assert found.record["json"]["task_id"]
    assert found.statistics["theta_e_arcsec"]["0"]["max"] == 0
    text_of(found)
    shutil.copy(dataset / "val" / "val-000000.parquet", tmp_path)
    assert inspect_dataset(tar, sample=0).record["sidecar"]["psfsize_r"] > 0


@pytest.mark.parametrize("names", [["val-000000.tar"], ["val-000000.tar", "val-000000.parquet"]])
def test_tar_alone_in_a_store_is_inspected_as_on_a_disk(dataset, tmp_path, s3, names):
    (tmp_path / "val").mkdir()
    store = open_store(f"{s3.uri}/val", s3.options())
    for name in names:
        shutil.copy(dataset / "val" / name, tmp_path / "val")
        store.write(name, (dataset / "val" / name).read_bytes())
    here, there = (
        inspect_dataset(f"{folder}/val/{names[0]}", sample=1, options=s3.options()).to_dict()
        for folder in (tmp_path, s3.uri)
    )
    assert here.pop("location") == f"{tmp_path}/val/{names[0]}"
    assert there.pop("location") == f"{s3.uri}/val/{names[0]}"
    assert there == here


def test_record_is_shown_in_full_and_lies_where_it_is_said_to(dataset):
    opened = Dataset.open(dataset)
    first = opened.split("train").shards[0].rows
    record = inspect_dataset(dataset, split="train", sample=first + 3).record
    assert (record["shard"], record["row"]) == ("train/train-000001.tar", 3)
    table = opened.read_sidecar("train").slice(first + 3, 1).to_pylist()[0]
    assert record["key"] == table["key"]
    assert record["sidecar"]["task_id"] == record["json"]["task_id"] == table["task_id"]
    assert record["crc32_agrees"] is True
    with tarfile.open(dataset / record["shard"]) as tar:
        for member in record["members"]:
            info = tar.getmember(member["name"])
            assert (info.offset, info.offset_data, info.size) == (
                member["offset"], member["data"], member["bytes"]
            )  # fmt: skip
    pixels = opened.read_pixels("train", [first + 3]).astype(np.float64)
    assert record["pixels"]["r"]["max"] == pixels[0, 1].max()


def test_altered_pixels_show_in_the_record(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    with (copy / "train" / "train-000000.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"\x55\x55")
    inspection = inspect_dataset(copy, sample=0)
    assert inspection.record["crc32_agrees"] is False
    assert "DIFFERS" in text_of(inspection)


def test_inspection_is_one_json_object_and_a_page_of_text(dataset):
    inspection = inspect_dataset(dataset, sample=2)
    data = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))
    assert data["splits"]["train"]["rows"] == 48
    text = text_of(inspection)
    for part in (inspection.dataset_id, "psfsize_r", "96 accepted", inspection.record["key"]):
        assert part in text
    assert "lens models" not in text  # the record that was asked for, and not all of the dataset
    assert "lens models" in text_of(inspect_dataset(dataset))


@pytest.mark.parametrize("sample", [-1, 48, 10**9])
def test_record_that_is_not_there_says_how_many_there_are(dataset, sample):
    with pytest.raises(DatasetError, match=f"no record {sample}: train has records 0 to 47"):
        inspect_dataset(dataset, split="train", sample=sample)


def test_what_is_no_dataset_says_so(dataset, tmp_path):
    with pytest.raises(DatasetError, match="no such dataset"):
        inspect_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no split 'dev'"):
        inspect_dataset(dataset, split="dev")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"nor a \.tar"):
        inspect_dataset(tmp_path / "x.txt")
    shutil.copy(dataset / "val" / "val-000000.tar", dataset / "val" / "other.tar")
    with pytest.raises(DatasetError, match="is not named by"):
        inspect_dataset(dataset / "val" / "other.tar")
    (dataset / "val" / "other.tar").unlink()


@pytest.mark.parametrize("size", [0, 100, 26624, 26624 + 1024 + 1])
def test_cut_tar_alone_is_an_error_that_names_it(dataset, tmp_path, size):
    data = (dataset / "val" / "val-000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:size])
    with pytest.raises(ShardError, match=r"cut\.tar"):
        inspect_dataset(tmp_path / "cut.tar")


def test_tar_of_another_kind_is_an_error_that_names_the_offset(tmp_path):
    (tmp_path / "zeros.tar").write_bytes(bytes(26624 + 1024))
    with pytest.raises(ShardError, match=r"zeros\.tar, offset 0: not a record"):
        inspect_dataset(tmp_path / "zeros.tar")


def test_bars_show_whatever_is_not_empty():
    assert _bars([0, 1, 1000, 500]) == " ▁█▄"
    assert _bars([0, 0]) == "  "


@pytest.mark.parametrize(
    "text",
    [b"", b"[1]", b"[" * 500, b'{"label": "1"}', b'{"label": NaN}', b'{"label": 1, "label": 0}',
     b'{"region_id": 9007199254740993}', b'{"ra": [1]}', b'{"task_id": "\\ud800"}', b"\xff"],
)  # fmt: skip
def test_a_json_member_that_is_none_is_an_error_that_names_the_record(dataset, tmp_path, text):
    data = bytearray((dataset / "val" / "val-000000.tar").read_bytes())
    data[JSON_OFFSET:RECORD_STRIDE] = text.ljust(RECORD_STRIDE - JSON_OFFSET)
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"x\.tar, offset 0: the JSON member cannot be read"):
        inspect_dataset(tmp_path / "x.tar", sample=0)


def test_pixels_that_are_not_finite_are_counted_and_the_output_stays_json(dataset, tmp_path):
    data = bytearray((dataset / "val" / "val-000000.tar").read_bytes())
    data[PAYLOAD_OFFSET : PAYLOAD_OFFSET + 8192] = b"\x01\x7d" * 4096  # signalling NaN: all of g
    (tmp_path / "x.tar").write_bytes(data)
    found = inspect_dataset(tmp_path / "x.tar", sample=0)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.record["pixels"]["g"] == {"not_finite": 1.0}
    assert 0 < found.pixels["g"]["not_finite"] < 1
    text_of(found)


def test_counterfactuals_are_counted_and_in_no_statistics_of_classes(tmp_path):
    table = tiny_table(48)
    made = tiny_counterfactuals(table, pairs=12)
    tree = write_tree(tmp_path / "stamps", table)
    convert(str(tree), str(tmp_path / "alone"), ConvertConfig(), workers=1)
    trees = [str(tree), str(write_tree(tmp_path / "made", made))]
    convert(trees, str(tmp_path / "ds"), ConvertConfig(), workers=1)
    before, found = inspect_dataset(tmp_path / "alone"), inspect_dataset(tmp_path / "ds")
    for name in ("models", "statistics", "histograms", "sky"):
        assert getattr(found, name) == getattr(before, name)
    assert "counterfactuals" not in before.splits["train"]
    assert found.splits["train"]["counterfactuals"] == {"lensed": 6, "unlensed": 6}
    assert found.splits["train"]["rows"] == before.splits["train"]["rows"] + 12
    shown = text_of(found)
    assert "counterfactuals of train (in no statistic of a class): lensed 6, unlensed 6" in shown
    assert "counterfactuals of" not in text_of(before)
    tar = inspect_dataset(tmp_path / "ds" / "train" / "train-000000.tar")
    assert tar.splits["train"]["counterfactuals"] == {"lensed": 6, "unlensed": 6}
    shutil.copy(tmp_path / "ds" / "train" / "train-000000.tar", tmp_path / "bare.tar")
    (bare,) = inspect_dataset(tmp_path / "bare.tar").splits.values()  # from the JSON of its records
    assert bare["counterfactuals"] == {"lensed": 6, "unlensed": 6}
