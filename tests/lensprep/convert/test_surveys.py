"""Trees of other surveys: converted, checked, verified, resumed; and Phase 4c as before."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.cli import main
from lensprep.convert import ConvertConfig, convert
from lensprep.convert.plan import read_plan
from lensprep.dataset import Dataset
from lensprep.dataset.geometry import DECALS
from lensprep.errors import ConfigError, DatasetError
from lensprep.inspection.verify import verify
from lensprep.source.survey import load_survey
from lensprep.store import open_store
from tests.lensprep.convert.conversions import digests, interrupt
from tests.phase4c import stamp_blob, tiny_tree
from tests.surveytree import survey_pixels, survey_table, tiny_survey, write_survey_tree

FOLDER = Path(__file__).parents[3] / "configs" / "surveys"


@pytest.mark.parametrize("name", ["hsc", "des", "euclid_vis", "rubin"])
def test_a_tree_of_each_survey_file_is_checked_converted_and_verified(tmp_path, name):
    survey = load_survey(FOLDER / f"{name}.toml")
    tree, out = write_survey_tree(tmp_path / "tree", survey, 40), str(tmp_path / "out")
    options = ["--survey", str(FOLDER / f"{name}.toml"), "--workers", "1", "--json"]
    checked = CliRunner().invoke(main, ["check", str(tree), "--pixels", *options])
    assert checked.exit_code == 0, checked.output
    report = json.loads(checked.stdout)
    failed = {f["item"] for f in report["findings"] if f["passed"] is False}
    assert failed == {"regions_per_split"}
    (sky,) = (f for f in report["findings"] if f["item"] == "sky_separation")
    assert sky["threshold"] == survey.geometry.diagonal_arcsec
    done = CliRunner().invoke(main, ["convert", str(tree), out, *options])
    assert done.exit_code == 0, done.output
    manifest = Dataset.open(out).manifest
    assert manifest.geometry == survey.geometry
    assert manifest.label_map == survey.label_map
    assert manifest.account["accepted"] == 40
    assert all(split.classes["0"] and split.classes["1"] for split in manifest.splits.values())
    assert verify(out, against=str(tree), sample=None, workers=1)["compared"] == 40


def test_stored_pixels_are_those_of_the_tree(tmp_path):
    survey = tiny_survey(bands=("vis",), side=32, noise=0.01)
    tree = write_survey_tree(tmp_path / "tree", survey, 16)
    convert(tree, str(tmp_path / "out"), ConvertConfig(survey=survey), workers=1)
    raw = survey_pixels(survey.geometry, np.arange(16) % 2 == 1)
    wanted = np.clip(np.arcsinh(raw / 0.01), -10, 10).astype(np.float16)
    ids = survey_table(survey, 16)["object_id"].to_pylist()
    by_id = dict(zip(ids, wanted, strict=True))
    dataset, rows = Dataset.open(tmp_path / "out"), 0
    for split in dataset.manifest.splits.values():
        for shard in split.shards:
            sidecar = pq.read_table(tmp_path / "out" / shard.sidecar)
            data = (tmp_path / "out" / shard.name).read_bytes()
            geometry = dataset.manifest.geometry
            for row, task_id in enumerate(sidecar["task_id"].to_pylist()):
                start = row * geometry.stride + 640
                stored = np.frombuffer(data, np.float16, 32 * 32, start).reshape(1, 32, 32)
                assert np.array_equal(stored, by_id[task_id])
                rows += 1
            assert {"scale_vis", "median_vis", "psfsize_r"} <= {*sidecar.column_names}
    assert rows == 16


def test_labels_outside_the_map_and_bands_that_lack_are_rejects_with_reasons(tmp_path):
    survey = tiny_survey(bands="gr", side=32)
    blobs = [stamp_blob(p, "gr") for p in survey_pixels(survey.geometry, np.arange(12) % 2 == 1)]
    blobs[3] = stamp_blob(np.zeros((1, 32, 32), np.float32), "g")
    tree = write_survey_tree(
        tmp_path / "tree",
        survey,
        12,
        columns={"stamp_npz": blobs, "lens_model": [0, 1, 7, 1, *[0, 1] * 4]},
    )
    config = ConvertConfig(survey=survey, max_reject_rate=1.0)
    result = convert(tree, str(tmp_path / "out"), config, workers=1)
    assert result["accepted"] == 10
    assert result["rejected"] == {"unknown_label": 1, "missing_band": 1}


def test_a_conversion_resumes_only_with_the_survey_it_began_with(tmp_path):
    survey = tiny_survey(bands="gr", side=32)
    other = tiny_survey(bands="gr", side=32, noise=0.1)
    tree, out = write_survey_tree(tmp_path / "tree", survey, 24), str(tmp_path / "out")
    config = ConvertConfig(survey=survey, shard_rows=8)

    def stop(phase, done, total):
        if phase == "shards":
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        convert(tree, out, config, workers=1, progress=stop)
    with pytest.raises(DatasetError, match=r"was begun with survey = 'hsc .*', not 'hsc "):
        convert(tree, out, ConvertConfig(survey=other, shard_rows=8), workers=1, resume=True)
    convert(tree, out, config, workers=1, resume=True)
    with pytest.raises(DatasetError, match=r"was made with survey = 'hsc .*', not 'hsc "):
        convert(tree, out, ConvertConfig(survey=other, shard_rows=8), workers=1, resume=True)
    again = str(tmp_path / "again")
    convert(tree, again, config, workers=1)
    assert digests(out) == digests(again)


def test_a_conversion_begun_for_another_survey_is_not_resumed_as_phase_4c(tmp_path):
    tree, out = tiny_tree(tmp_path, 24), str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        convert(tree, out, ConvertConfig(), workers=1, progress=interrupt)
    plan = open_store(out).root / ".work/plan.json"
    text = json.loads(plan.read_text())
    assert text["config"].pop("survey") is None
    plan.write_text(json.dumps(text | {"config": text["config"] | {"survey": "hsc 123"}}))
    with pytest.raises(DatasetError, match=r"was begun with survey = 'hsc 123', not None"):
        convert(tree, out, ConvertConfig(), workers=1, resume=True)
    plan.write_text(json.dumps(text))  # as versions wrote it that knew no other survey
    assert "survey" not in read_plan(open_store(out)).config
    assert convert(tree, out, ConvertConfig(), workers=1, resume=True)["accepted"] == 24


def test_a_manifest_of_phase_4c_says_nothing_of_surveys(dataset):
    manifest = Dataset.open(dataset).manifest
    assert manifest.geometry == DECALS
    assert manifest.format_version == 1
    assert "survey" not in manifest.config
    assert "survey" not in manifest.source
    assert "survey" not in manifest.facts()


def test_a_cut_needs_its_column(tmp_path):
    survey = tiny_survey(bands="gr", side=32)
    tree = write_survey_tree(tmp_path / "tree", survey, 8)
    config = ConvertConfig(survey=survey, max_bad_pixel_frac=0.2)
    with pytest.raises(ConfigError, match="max_bad_pixel_frac needs a column bad_pixel_frac"):
        convert(tree, str(tmp_path / "out"), config, workers=1)


def test_counterfactuals_are_made_of_phase_4c_alone(tmp_path):
    pytest.importorskip("lenstronomy")
    tree = write_survey_tree(tmp_path / "tree", tiny_survey(bands="gr", side=32), 8)
    result = CliRunner().invoke(main, ["counterfactual", str(tree), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "Counterfactuals are made of Phase 4c trees alone" in result.output
