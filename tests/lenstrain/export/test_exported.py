"""Exported files: the same numbers in every format, and nothing run or trusted that is not ours."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch

from lensprep.dataset import DECALS
from lensprep.dataset.normalization import normalization_spec
from lensprep.errors import CheckpointError, InputError
from lenstrain.export import FORMATS, export_all, open_exported
from lenstrain.export.network import FluxFinder
from lenstrain.scoring.infer import infer
from lenstrain.training.checkpoint import load_finder
from tests.lenstrain.export.conftest import CALIBRATION, FINDER, SPEC, write_checkpoint
from tests.lenstrain.export.test_network import SPOILT, sky, spoilt
from tests.lenstrain.geometries import UGRIZY, VIS

SUFFIXES = tuple(FORMATS)


def assert_same(opened, finder, flux):
    with torch.inference_mode():
        expected = [value.numpy() for value in finder(torch.from_numpy(flux))]
    for suffix, one in opened.items():
        for found, wanted in zip(one(flux), expected, strict=True):
            assert found.dtype == np.float32, suffix
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=suffix)


@pytest.mark.parametrize("rows", [1, 2, 257])
def test_every_format_gives_the_same_numbers_for_any_number_of_stamps(exported, rows):
    assert_same(exported.opened, exported.finder, sky(DECALS, rows, seed=rows))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_stamps_have_no_scores(exported, suffix):
    logit, probability = exported.opened[suffix](np.empty((0, *DECALS.shape)))
    assert logit.shape == probability.shape == (0,)
    assert logit.dtype == probability.dtype == np.float32


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_spoilt_stamp_is_nan_in_every_runtime(exported, suffix):
    unknown = [False, *[True] * len(SPOILT), False]
    for found in exported.opened[suffix](spoilt(DECALS)):
        np.testing.assert_array_equal(np.isnan(found), unknown)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mode", "geometry", "settings"),
    [
        pytest.param("mad_stamp", DECALS, FINDER, id="mad_stamp"),
        pytest.param("sqrt", DECALS, FINDER, id="sqrt"),
        pytest.param("asinh_survey", DECALS, FINDER, id="asinh_survey"),
        pytest.param("mad_annulus", UGRIZY, ("model.arch=resnet_small",), id="six bands"),
        pytest.param("asinh_survey", VIS, ("model.arch=resnet_small",), id="odd side"),
        pytest.param("asinh_survey", DECALS, ("model.arch=convnext_tiny",), id="convnext"),
        pytest.param("asinh_survey", DECALS, ("model.arch=efficientnet_b0",), id="efficientnet"),
    ],
)
def test_every_mode_survey_and_network_is_the_same_in_every_format(
    mode, geometry, settings, tmp_path
):
    spec = normalization_spec(mode, geometry=geometry)
    checkpoint = write_checkpoint(tmp_path / "a.pt", spec, geometry, None, settings)
    export_all(checkpoint, tmp_path)
    opened = {suffix: open_exported(tmp_path / f"finder{suffix}") for suffix in SUFFIXES}
    model, _, _ = load_finder(checkpoint, "cpu")
    finder = FluxFinder(model, opened[".onnx"].facts)
    for rows in (1, 2, 33):
        assert_same(opened, finder, sky(geometry, rows, seed=rows))
    assert_same(opened, finder, spoilt(geometry))


def test_a_file_says_what_it_is_and_nothing_of_the_machine(exported):
    for suffix, path in exported.files.items():
        facts = exported.opened[suffix].facts
        assert facts["format"] == "lenstrain-finder"
        assert facts["geometry"] == DECALS.to_dict()
        assert facts["normalization"] == SPEC.to_dict()
        assert facts["input"]["unit"] == "nanomaggy per pixel"
        assert facts["input"]["shape"] == ["batch", 3, 64, 64]
        assert facts["calibration"] == CALIBRATION
        assert facts["outputs"]["probability"] == "float32, that it is a lens; calibrated, platt"
        assert facts["config"]["model"]["arch"] == "resnet_small"
        assert "cache_dir" not in facts["config"]["data"]
        data = path.read_bytes()
        for place in (
            os.getcwd(),
            str(path.parent),
            "site-packages",
            "network.py",
            "/nvme",
            "/home",
        ):
            assert place.encode() not in data, (path, place)


def test_onnx_is_one_file_of_a_stated_opset_with_a_batch_of_any_size(exported):
    model = onnx.load_model(exported.files[".onnx"], load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    (flux,) = model.graph.input
    sizes = flux.type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes] == [0, 3, 64, 64]
    assert flux.name == "flux"
    assert [value.name for value in model.graph.output] == ["logit", "probability"]


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(world, exported, tmp_path):
    arguments = f"{world.best!r}, '.', report={str(exported.report)!r}, rows=1"
    code = f"from lenstrain.export import export_all; export_all({arguments})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"finder{s}" for s in SUFFIXES)
    for path in exported.files.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_stamps_of_another_shape_are_refused(exported, suffix):
    with pytest.raises(InputError, match=r"takes n x 3 x 64 x 64 \(bands, rows, columns\)"):
        exported.opened[suffix](np.zeros((2, 3, 48, 48), np.float32))


# ------------------------------------------------------------------------ what is not ours


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_and_other_files_are_one_line(exported, suffix, tmp_path):
    path, data = tmp_path / f"f{suffix}", exported.files[suffix].read_bytes()
    for content in (
        b"",
        b"nothing of the kind",
        data[: len(data) // 2],
        data[:200],
        pickle.dumps(3),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            open_exported(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"no such file\. `lenstrain export` writes one"):
        open_exported(tmp_path / f"none{suffix}")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"one of \.safetensors, \.onnx, \.pt2"):
        open_exported(tmp_path / "finder.h5")


def changed(exported, tmp_path, change):
    model = onnx.load_model(exported.files[".onnx"])
    change(model)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def rename_input(model):
    for node in model.graph.node:
        node.input[:] = ["image" if name == "flux" else name for name in node.input]
    model.graph.input[0].name = "image"


def outside(model):
    (one,) = [t for t in model.graph.initializer if t.name.endswith("conv1.weight")][:1]
    one.ClearField("raw_data")
    one.data_location = onnx.TensorProto.EXTERNAL
    one.external_data.add(key="location", value="/etc/passwd")


def restate(name, value):
    def change(model):
        facts = json.loads(model.metadata_props[0].value)
        facts[name] = value
        model.metadata_props[0].value = json.dumps(facts)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: model.ClearField("metadata_props"), "does not say how it normalises"),
        (rename_input, "makes logit, probability of image, not logit and probability of flux"),
        (outside, "keeps weights in other files"),
        (restate("format_version", 9), "has format 9 of exported finders"),
        (restate("tta", None), "'tta' is missing or wrong"),
        (restate("checkpoint_sha256", "../x"), "checkpoint_sha256 is none"),
        (restate("geometry", {}), "is damaged: geometry has no entry"),
        (restate("calibration", {"slope": -1, "offset": 0}), "the slope -1 is not positive"),
        (restate("calibration", {"slope": 1, "offset": "0"}), "offset is '0', not a finite number"),
        (restate("calibration", {"slope": 1, "offset": 0}), "calibration has no kind"),
        (lambda model: model.graph.node.pop(), "cannot be run"),
    ],
)
def test_an_onnx_file_that_is_not_ours_is_refused(exported, tmp_path, change, says):
    with pytest.raises(CheckpointError, match=says):
        open_exported(changed(exported, tmp_path, change))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def repacked(path, tmp_path, change):
    """A program whose archive was altered: `change` takes and returns its members."""
    with zipfile.ZipFile(path) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    out = tmp_path / "changed.pt2"
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out


def trap(name):
    data = io.BytesIO()
    torch.save(Trap(), data)
    return lambda members: {**members, f"archive/{name}": data.getvalue()}


def in_json(name, old, new):
    def change(members):
        text = members[f"archive/{name}"].decode()
        assert old in text
        return {**members, f"archive/{name}": text.replace(old, new, 1).encode()}

    return change


WEIGHTS, MODEL = "data/weights/model_weights_config.json", "models/model.json"
EVIL = "__import__('pytest').fail('it was evaluated')"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (trap("data/sample_inputs/model.pt"), "holds an example in pickle"),
        (trap("data/weights/model.pt"), "holds 'archive/data/weights/model.pt', which no finder"),
        (trap("data/constants/opaque_obj_0"), "which no finder has"),
        (in_json(WEIGHTS, '"use_pickle": false', '"use_pickle": true'), "tensors in pickle"),
        (in_json(WEIGHTS, '"weight_0"', '"../weight_0"'), "names '../weight_0'"),
        (in_json(MODEL, "Symbol(", f"{EVIL}, Symbol("), "its graph holds"),
        (in_json(MODEL, "torch.ops.aten.abs.default", "torch.hub.load"), "holds 'torch.hub.load'"),
        (in_json(MODEL, '"guards_code": []', f'"guards_code": ["{EVIL}"]'), "guards in Python"),
        (in_json(MODEL, "builtins.tuple", "os.system"), "its graph holds"),
        (lambda members: {k: v for k, v in members.items() if "lenstrain" not in k}, "normalises"),
    ],
)  # fmt: skip
def test_nothing_of_a_program_is_unpickled_or_evaluated(exported, tmp_path, change, says):
    with pytest.raises(CheckpointError, match=says):
        open_exported(repacked(exported.files[".pt2"], tmp_path, change))


def test_a_program_that_was_only_packed_again_is_the_same(exported, tmp_path):
    again = open_exported(repacked(exported.files[".pt2"], tmp_path, dict))
    flux = sky(DECALS, 3)
    np.testing.assert_array_equal(again(flux)[0], exported.opened[".pt2"](flux)[0])


# ------------------------------------------------------------------------- safetensors


def header_of(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, rest):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def test_weights_are_scored_like_the_checkpoint(world, exported, tmp_path):
    weights = exported.files[".safetensors"]
    tables = [tmp_path / "checkpoint.parquet", tmp_path / "weights.parquet"]
    results = [
        infer(path, world.dataset, split="val", out=out, device="cpu")
        for path, out in zip((world.best, weights), tables, strict=True)
    ]
    one, two = (pq.read_table(path) for path in tables)
    assert one.equals(two)
    assert one.num_rows > 10
    assert results[1]["checkpoint_sha256"] == exported.opened[".safetensors"].sha256
    metadata = [json.loads(table.schema.metadata[b"lenstrain"]) for table in (one, two)]
    for name in ("trained_on", "step", "epoch", "normalization", "geometry", "label_map"):
        assert metadata[0][name] == metadata[1][name], name


def hostile(change):
    def altered(data):
        header, rest = header_of(data)
        facts = json.loads(header["__metadata__"]["lenstrain"])
        change(header, facts)
        if "lenstrain" in header.get("__metadata__", {}):
            header["__metadata__"]["lenstrain"] = json.dumps(facts)
        return with_header(header, rest)

    return altered


def reshape(header, facts):
    header["head.weight"]["shape"] = header["head.weight"]["shape"][::-1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (hostile(lambda header, facts: header.pop("__metadata__")), "does not say how"),
        (hostile(lambda header, facts: facts.update(format="pt")), "does not say how"),
        (hostile(lambda header, facts: facts.pop("config")), "'config' is missing"),
        (hostile(reshape), "do not fit the model"),
        (hostile(lambda header, facts: facts["config"]["model"].update(width=1 << 20)), "not fit"),
        (hostile(lambda header, facts: facts["config"]["model"].update(arch="os")), "cannot use"),
        (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "no finder in safetensors"),
        (lambda data: data[:-40], "no finder in safetensors"),
    ],
)
def test_hostile_weights_are_one_line(exported, tmp_path, change, says):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(change(exported.files[".safetensors"].read_bytes()))
    with pytest.raises(CheckpointError, match=says) as caught:
        load_finder(path, "cpu")
    assert "\n" not in str(caught.value)
