"""Conversion of stamps of any bands and side: the bytes are those that the geometry states."""

from __future__ import annotations

import io

import numpy as np
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.dataset.normalization import band_statistics, normalize
from lensprep.dataset.record import header_faults
from tests.lensprep.convert.conversions import digests
from tests.surveytree import survey_table, tiny_survey, write_survey_tree

SURVEYS = {
    "euclid": tiny_survey("euclid_vis", ["vis"], 101, 0.1),
    "rubin": tiny_survey("rubin", "ugrizy", 48, 0.2),
    "large": tiny_survey("large", "gr", 160, 0.05),
    "named": tiny_survey("webb", ["F115W", "F150W", "F277W"], 33, 0.03),
}


def config_of(survey, **given):
    return ConvertConfig(survey=survey, shard_rows=10, max_reject_rate=1.0, **given)


@pytest.mark.parametrize("mode", ["asinh_survey", "mad_annulus"])
@pytest.mark.parametrize("name", SURVEYS)
def test_stored_stamps_are_those_of_numpy(tmp_path, name, mode):
    survey, count = SURVEYS[name], 12
    geometry = survey.geometry
    tree = write_survey_tree(tmp_path / "tree", survey, rows=count, row_group_rows=4)
    convert(str(tree), str(tmp_path / "ds"), config_of(survey, normalize=mode), workers=1)
    dataset = Dataset.open(tmp_path / "ds")
    assert dataset.manifest.geometry == geometry
    raw, table = {}, survey_table(survey, count)
    for row in table.to_pylist():
        with np.load(io.BytesIO(row["blob"])) as archive:
            raw[row["object_id"]] = np.stack([archive[f"image_{b}"] for b in geometry.bands])
    rows = 0
    for split, info in dataset.manifest.splits.items():
        side = dataset.read_sidecar(split).to_pylist()
        at = 0
        for shard in info.shards:
            data = np.fromfile(tmp_path / "ds" / shard.name, np.uint8)
            assert len(data) == shard.bytes == geometry.shard_bytes(shard.rows)
            records = data[: shard.rows * geometry.stride].reshape(shard.rows, geometry.stride)
            assert not len(header_faults(records, geometry))
            for record, row in zip(records, side[at : at + shard.rows], strict=True):
                flux = raw.pop(row["task_id"])[None]
                spec = dataset.manifest.normalization
                median, scale = band_statistics(flux, spec)
                stored = normalize(flux, spec, median, scale)
                payload = record[640 : 640 + geometry.payload_bytes]
                assert payload.tobytes() == stored.tobytes()
                assert [row[c] for c in geometry.band_columns("scale")] == scale[0].tolist()
            at += shard.rows
        rows += at
    assert rows == count
    assert raw == {}


@pytest.mark.parametrize("name", ["rubin", "large"])
def test_small_runs_and_runs_in_a_store_do_not_change_the_bytes(s3, tmp_path, monkeypatch, name):
    survey = SURVEYS[name]
    tree = write_survey_tree(tmp_path / "tree", survey, rows=24, row_group_rows=4)
    convert(str(tree), str(tmp_path / "a"), config_of(survey), workers=1)
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 28)
    monkeypatch.setattr("lensprep.convert.shards.BLOCK_ROWS", 12)
    for name, value in (("BATCH_ROWS", 24), ("READ_ROWS", 12), ("BLOB_ROWS", 4)):
        monkeypatch.setattr(f"lensprep.decode.rowgroup.{name}", value)
    convert(
        str(tree),
        str(tmp_path / "b"),
        config_of(survey),
        workers=1,
        work=s3.uri,
        options=s3.options(),
    )
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
