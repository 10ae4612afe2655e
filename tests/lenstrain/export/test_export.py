"""Writing and comparing: the checkpoint's logits on raw stamps, and nothing left that differs."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from scipy import special

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import open_dataset
from lensprep.dataset.normalization import MODES, normalization_spec
from lensprep.decode.parts import ORIGIN_COLUMNS, tree_stamps
from lensprep.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    InputError,
    ScoresError,
)
from lensprep.store import file_sha256
from lenstrain.cli import main
from lenstrain.export import export, export_all, open_exported
from lenstrain.probes.scoring import Scorer
from lenstrain.training.checkpoint import load_finder
from tests.lenstrain.export.conftest import (
    CALIBRATION,
    FINDER,
    SPEC,
    write_checkpoint,
    write_report,
)
from tests.phase4c import tiny_table, write_tree
from tests.snippets import blocks
from tests.surveytree import tiny_survey, write_survey_tree


def test_every_format_is_the_checkpoint_on_raw_stamps(world, exported):
    result = exported.result
    assert (result["flux"], result["split"], result["notes"]) == ("source", "test", [])
    assert result["calibration"] == CALIBRATION
    assert result["checkpoint_sha256"] == file_sha256(world.best)
    rows = world.data.split("test").rows
    for file, runtime in zip(result["files"], ["torch", "onnxruntime", "torch"], strict=True):
        assert file["bytes"] == Path(file["path"]).stat().st_size
        assert file["sha256"] == file_sha256(file["path"])
        assert (file["rows"], file["runtime"]) == (rows, runtime)
        assert 0 <= file["mean_logit_difference"] <= file["largest_logit_difference"] < 1e-4
        assert 0 <= file["mean_probability_difference"] <= file["largest_probability_difference"]
        assert file["largest_probability_difference"] < 1e-4
    assert sorted(path.name for path in world.folder.glob("*finder*")) == [
        "finder.onnx", "finder.pt2", "finder.safetensors",
    ]  # fmt: skip


def test_onnxruntime_gives_raw_stamps_the_scores_of_stored_ones(world, exported):
    """Row by row, without what compares them."""
    table = world.data["test"].table([*ORIGIN_COLUMNS, "label"])
    named = table["source_file"].to_pylist()
    (light,) = {name.partition("/")[0] for name in named} - {"phase4c"}
    assert light == "light"
    rows = table.to_pylist()[:20]
    flux = np.concatenate([
        tree_stamps(tree, [{**row, "source_file": row["source_file"].partition("/")[2]}])
        for row in rows
        for tree in [world.trees[row["source_file"].startswith("light/")]]
    ])  # fmt: skip
    model, _, _ = load_finder(world.best, "cpu")
    expected = Scorer(model)(world.data.read_pixels("test", np.arange(20)))
    logit, probability = exported.opened[".onnx"](flux)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logit, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(probability, special.expit(1.5 * expected - 0.25), atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_flux_is_restored_where_there_is_no_source(mode, world, tmp_path):
    """Modes that measure statistics on it do so for the checkpoint too, and it is said."""
    config = ConvertConfig(normalize=mode, clip=4.0)
    convert(world.trees, str(tmp_path / "ds"), config, workers=1)
    data = open_dataset(tmp_path / "ds")
    best = write_checkpoint(tmp_path / "a.pt", data.manifest.normalization, data=data)
    result = export(best, tmp_path / "f.safetensors")
    assert result["flux"] == ("restored" if mode == "asinh_survey" else "measured anew")
    assert result["files"][0]["largest_logit_difference"] < 1e-4
    assert result["files"][0]["rows"] == data.split("test").rows
    assert [note[:17] for note in result["notes"]] == ["Flux was restored"] * (
        mode != "asinh_survey"
    )


def test_another_survey_is_compared_on_its_raw_stamps(tmp_path):
    survey = tiny_survey()
    tree = write_survey_tree(tmp_path / "hsc", survey, 48)
    convert(str(tree), str(tmp_path / "ds"), ConvertConfig(survey=survey), workers=1)
    data = open_dataset(tmp_path / "ds")
    best = write_checkpoint(tmp_path / "a.pt", data.manifest.normalization, survey.geometry, data)
    result = export(best, tmp_path / "f.safetensors", source=[tree])
    assert result["files"][0]["rows"] == data.split("test").rows > 5
    assert result["files"][0]["largest_logit_difference"] < 1e-4
    facts = open_exported(tmp_path / "f.safetensors").facts
    assert facts["input"]["unit"] == "flux of zero point 27 per pixel"
    assert facts["input"]["bands"] == list("grizy")


def test_a_mean_over_d4_is_exported_where_the_scores_are_means(world, tmp_path):
    _, _, sha256 = load_finder(world.best, "cpu")
    report = write_report(tmp_path / "report", sha256, None, tta=True)
    seen = []
    result = export(
        world.best, tmp_path / "f.safetensors", report=report, source=world.trees, rows=5,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert (result["tta"], result["calibration"]) == (True, None)
    assert result["files"][0]["rows"] == 5
    assert seen[-1] == (5, 5)
    found = export(world.best, check=tmp_path / "f.safetensors", rows=5)
    assert found["tta"]
    other = write_report(tmp_path / "other", sha256)
    with pytest.raises(CheckpointError, match="was made with another report"):
        export(world.best, check=tmp_path / "f.safetensors", report=other)


@pytest.mark.slow
def test_a_mean_over_d4_is_the_same_in_every_format(world, tmp_path):
    _, _, sha256 = load_finder(world.best, "cpu")
    report = write_report(tmp_path / "report", sha256, tta=True)
    result = export_all(world.best, tmp_path, report=report, source=world.trees)
    assert result["tta"]
    for file in result["files"]:
        assert file["rows"] == world.data.split("test").rows
        assert file["largest_logit_difference"] < 1e-4


def test_a_file_of_weights_is_exported_again_as_the_same_checkpoint(world, exported, tmp_path):
    weights = exported.files[".safetensors"]
    result = export(
        weights, tmp_path / "again.safetensors", report=exported.report, dataset=world.dataset
    )
    assert result["checkpoint_sha256"] == exported.result["checkpoint_sha256"]
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()


# ------------------------------------------------------------------- what is not the same


def altered(exported, tmp_path, name, change):
    model = onnx.load_model(exported.files[".onnx"])
    (one,) = [t for t in model.graph.initializer if t.name.endswith(name)]
    one.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(one)), one.name))
    path = tmp_path / "altered.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_one_number_of_a_file_that_was_altered_is_noticed(world, exported, tmp_path):
    path = altered(exported, tmp_path, "head.bias", lambda bias: bias + np.float32(0.01))
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        export(world.best, check=path, rows=12)
    expected = (
        f"{path} is not {world.best}: 12 of 12 stamps differ by more than rounding, up to 0.01"
    )
    assert str(caught.value).startswith(expected)
    assert path.read_bytes() == before
    assert export(world.best, check=exported.files[".onnx"], rows=12)["files"][0]["rows"] == 12


def test_a_calibration_that_is_not_the_stated_one_is_noticed(world, exported, tmp_path):
    model = onnx.load_model(exported.files[".onnx"])
    facts = json.loads(model.metadata_props[0].value)
    facts["calibration"]["offset"] += 1e-3
    model.metadata_props[0].value = json.dumps(facts)
    (tmp_path / "f.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"of 12 stamps differ by more than rounding"):
        export(world.best, check=tmp_path / "f.onnx", rows=12)


def test_a_file_that_differs_is_not_left_behind(world, tmp_path, monkeypatch):
    """Here because its normalisation clips elsewhere than conversion did."""
    monkeypatch.setattr("torch.Tensor.clamp", lambda self, low, high: self.clip(low / 4, high / 4))
    (tmp_path / "f.safetensors").write_text("older")
    with pytest.raises(CheckpointError, match=r"differ by more than rounding"):
        export(world.best, tmp_path / "f.safetensors", source=world.trees)
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]
    assert (tmp_path / "f.safetensors").read_text() == "older"


def test_a_stamp_without_a_number_is_a_difference(world, tmp_path, monkeypatch):
    monkeypatch.setattr("lenstrain.export.network._TOO_BRIGHT", 0.0)
    with pytest.raises(CheckpointError, match=r"24 of 24 stamps differ .* nan in the logit"):
        export(world.best, tmp_path / "f.safetensors")


# ------------------------------------------------------------------------------- refusals


def test_without_the_dataset_of_the_training_nothing_is_compared_and_it_is_said(tmp_path):
    best = write_checkpoint(tmp_path / "a.pt")
    result = export(best, tmp_path / "f.safetensors")
    assert (result["dataset"], result["flux"], result["files"][0]["rows"]) == (None, None, 0)
    assert result["files"][0]["largest_logit_difference"] is None
    (note,) = result["notes"]
    assert note.startswith(
        "Nothing was compared: the dataset of the training, 000000000000, is not"
    )
    with pytest.raises(ConfigError, match="Name a copy of it with --dataset"):
        export(best, tmp_path / "g.safetensors", source=["anywhere"])


@pytest.fixture
def refused(world, tmp_path):
    def refuse(error, says, **options):
        options = {"checkpoint": world.best, "out": tmp_path / "f.safetensors"} | options
        with pytest.raises(error, match=says) as caught:
            export(**options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "f.safetensors").exists()

    return refuse


def test_reports_of_something_else_are_refused(world, refused, tmp_path):
    _, _, sha256 = load_finder(world.best, "cpu")
    cases = {
        "is not of scores of .*, but of one of SHA-256 ffffffffffff": ("f" * 64,),
        "is of mean logits of 2 checkpoints": (sha256, CALIBRATION, "f" * 64),
    }
    for says, (digest, *more) in cases.items():
        others = more[1:]
        report = write_report(tmp_path / "report", digest, others=others)
        refused(ScoresError, says, report=report)
    refused(ScoresError, "holds no metrics.json", report=tmp_path / "none")
    for text in ("{}", "[]", "nothing", '{"calibration": {"slope": "1"}, "provenance": 3}'):
        (tmp_path / "report" / "metrics.json").write_text(text)
        refused(ScoresError, "is no report of lenstrain", report=tmp_path / "report")
    report = write_report(tmp_path / "report", sha256, CALIBRATION | {"slope": float("nan")})
    refused(ScoresError, "is no report of lenstrain", report=report)


def test_files_of_something_else_are_refused(world, exported, refused, tmp_path):
    other = write_checkpoint(tmp_path / "b.pt", normalization_spec("sqrt"), data=world.data)
    for path in exported.files.values():
        refused(CheckpointError, "normalises by mad_annulus", checkpoint=other, out=(), check=path)
    survey = tiny_survey().geometry
    small = write_checkpoint(tmp_path / "c.pt", None, survey)
    path = exported.files[".onnx"]
    refused(
        CheckpointError, r"was trained on stamps of hsc, .*finder.onnx holds decals",
        checkpoint=small, out=(), check=path,
    )  # fmt: skip
    again = write_checkpoint(
        tmp_path / "d.pt", SPEC, data=world.data, settings=(*FINDER, "model.dropout=0.5")
    )
    refused(CheckpointError, "made from another checkpoint", checkpoint=again, out=(), check=path)


def test_datasets_of_something_else_are_refused(world, refused, tmp_path):
    tree = write_tree(tmp_path / "tree", tiny_table(16, region_split="test"))
    convert(str(tree), str(tmp_path / "ds"), ConvertConfig(normalize="sqrt"), workers=1)
    says = "was trained on pixels of normalisation mad_annulus"
    refused(CheckpointError, says, dataset=tmp_path / "ds")
    small = write_checkpoint(tmp_path / "c.pt", None, tiny_survey().geometry)
    refused(CheckpointError, "trained on stamps of hsc", checkpoint=small, dataset=world.dataset)
    refused(DatasetError, "no such dataset", dataset=tmp_path / "nothing")
    refused(DatasetError, "has no split 'tset'", split="tset")


def test_a_source_that_is_not_that_of_the_dataset_is_refused(world, refused, tmp_path):
    refused(InputError, "no longer has the file", source=world.trees[:1])
    moved = [
        shutil.copytree(tree, tmp_path / "moved" / tree.rsplit("/", 1)[1]) for tree in world.trees
    ]
    file = sorted(moved[0].rglob("region_split=test/*.parquet"))[0]
    table = pa.parquet.read_table(file)
    pa.parquet.write_table(table.slice(0, 1), file)
    refused(InputError, "has changed: row group", source=moved)
    spoilt = table.set_column(
        table.schema.get_field_index("stamp_npz"), "stamp_npz", pa.array([b"no"] * len(table))
    )
    pa.parquet.write_table(spoilt, file, row_group_size=4)
    refused(InputError, "has changed: row 0 is damaged", source=moved)


def test_nothing_to_do_and_places_that_cannot_be_written(world, refused, tmp_path):
    refused(ConfigError, "Name files to write", out=())
    refused(ConfigError, "each once", out=[tmp_path / "f.onnx"] * 2)
    refused(ConfigError, "one file to check", check=tmp_path / "f.onnx")
    refused(CheckpointError, "the suffix says", out=tmp_path / "f.pt")
    refused(CheckpointError, "no such checkpoint", checkpoint=tmp_path / "none.pt")


# ---------------------------------------------------------------------------- command line


def invoke(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_the_command_says_what_was_written_and_how_far_it_is(
    world, exported, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # a long path would set the table upright
    done = invoke(world.best, "--dataset", world.data.root, "--out", "f.safetensors", "--rows", 8)
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.search(r"f\.safetensors +safetensors +\S+ kB +\d\.\de-\d\d", done.stdout)
    assert "8 stamps of test of" in done.stdout
    assert "restored from the shards, its statistics measured anew." in done.stdout
    assert "The probabilities are not calibrated" in done.stdout
    done = invoke(
        world.best, "--check", exported.files[".onnx"], "--source", world.trees[0],
        "--source", world.trees[1], "--json",
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert (result["flux"], result["files"][0]["runtime"]) == ("source", "onnxruntime")


def test_the_command_wants_files_to_write_or_one_to_check(world, tmp_path):
    for arguments in ((), ("--out", tmp_path / "f.onnx", "--check", tmp_path / "g.onnx")):
        done = invoke(world.best, *arguments)
        assert done.exit_code == 2
        assert "Give --out, once or more, or --check." in done.stderr
    assert "one of .safetensors, .onnx, .pt2" in invoke(world.best, "--out", "f.txt").stderr
    done = invoke(world.best, "--check", tmp_path / "none.onnx")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("module", "suffix"),
    [("onnx", ".onnx"), ("onnxscript", ".onnx"), ("safetensors", ".safetensors")],
)
def test_without_the_extra_the_command_says_which(module, suffix, world, tmp_path, monkeypatch):
    for name in {module, *(name for name in sys.modules if name.startswith(f"{module}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    done = invoke(world.best, "--out", tmp_path / f"f{suffix}")
    assert done.exit_code == 1
    assert f"Error: {module} is not installed; the extra `publish` brings it." in done.stderr
    assert not list(tmp_path.iterdir())


def test_files_lie_in_a_store_too(world, exported, s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.server.http)
    target = f"{s3.uri}/finder.safetensors"
    export(world.best, target, report=exported.report, rows=4)
    there = open_exported(target)
    assert there.sha256 == exported.opened[".safetensors"].sha256
    assert export(world.best, check=target, rows=4)["files"][0]["rows"] == 4
    assert export(target, check=target, dataset=world.dataset, rows=4)["files"][0]["rows"] == 4


def test_the_readers_of_the_page_give_the_same_scores(world, exported, tmp_path, monkeypatch):
    readers = [b.text for b in blocks() if b.page.endswith("export.md") and b.language == "python"]
    assert len(readers) == 3
    flux = world.data["test"].stamps(count=5).restored()
    np.save(tmp_path / "flux.npy", flux)
    for path in exported.files.values():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for text in readers:
        assert len(text.splitlines()) <= 10
        names = {}
        exec(compile(text, "export.md", "exec"), names)
        for name, expected in zip(
            ("logit", "probability"), exported.opened[".onnx"](flux), strict=True
        ):
            np.testing.assert_allclose(names[name], expected, rtol=1e-4, atol=1e-5)
