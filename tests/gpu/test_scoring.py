"""Scores from a GPU are those of a CPU, to what their precision allows; so are maps of evidence."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from lensprep.dataset import Dataset
from lenstrain.cli import main
from lenstrain.data import StampLoader
from lenstrain.probes.attention import randomised
from lenstrain.probes.attribution import gradcam_maps, occlusion_maps
from lenstrain.probes.scoring import Scorer
from lenstrain.scoring.infer import infer
from lenstrain.training.checkpoint import load_model
from lenstrain.training.signals import StopSignals
from lenstrain.training.train import validate
from lenstrain.training.validate import score_split
from tests.gpu.device import ALONE, CPU, DEVICE, ON_GPU

pytestmark = ON_GPU

FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}
"""TF32 is off by 1e-3, and bf16 by 1e-2."""
COARSE = {"tf32": 0.02, "bf16": 0.2}
"""Most by which a logit of a few units may differ in a precision with so few bits."""


@pytest.fixture
def scores(dataset, finder, tmp_path):
    """Scores the test split with the finder; gives the table and what `infer` says of it."""

    def score(device, **options):
        out = tmp_path / f"{device.type}.parquet"
        said = infer(
            finder, dataset, split="test", out=out, batch_size=16, device=device.type, **options
        )
        return pq.read_table(out), said

    return score


def logits(table):
    return table["logit"].to_numpy()


@pytest.mark.parametrize("tta", [False, True])
def test_scores_and_embeddings_are_those_of_a_cpu(scores, tta):
    expected, _ = scores(CPU.device, tta=tta, embeddings=True)
    found, said = scores(DEVICE, tta=tta, embeddings=True)
    assert said["device"] == str(DEVICE)
    assert found["key"].to_pylist() == expected["key"].to_pylist()
    assert np.ptp(logits(expected)) > 1  # or close logits would mean nothing
    np.testing.assert_allclose(logits(found), logits(expected), **FLOAT32)
    one, two = (np.array(table["embedding"].to_pylist()) for table in (found, expected))
    np.testing.assert_allclose(one, two, **FLOAT32)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_each_precision_of_scores_is_close_to_float32(scores, precision):
    if precision != "float32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"this GPU has no {precision}")
    expected, _ = scores(CPU.device)
    found, said = scores(DEVICE, precision=precision)
    assert said["precision"] == precision
    assert found["key"].to_pylist() == expected["key"].to_pylist()
    off = np.abs(logits(found) - logits(expected)).max()
    assert off < COARSE.get(precision, 1e-3)
    if precision == "bf16":
        assert off > 1e-4  # or the option does nothing


def test_scores_are_float32_whatever_the_training_uses(dataset, finder):
    model, _ = load_model(Path(finder))
    rows = Dataset.open(dataset).split("val").rows
    expected, _ = score_split(model, StampLoader(dataset, "val", 18, shuffle=None), rows, CPU)
    torch.backends.cudnn.allow_tf32 = True
    loader = StampLoader(dataset, "val", 18, shuffle=None, pin_memory=True)
    found, _ = score_split(model.to(DEVICE), loader, rows, ALONE)
    loader.close()
    np.testing.assert_allclose(found, expected, **FLOAT32)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_validation_has_the_precision_that_is_asked_for(fresh_run, amp):
    found, labels = validate(fresh_run(f"eval.amp={amp}"), StopSignals())
    expected, same = validate(fresh_run("eval.amp=off", context=CPU), StopSignals())
    np.testing.assert_array_equal(labels, same)
    off = np.abs(found - expected).max()
    if amp == "off":
        assert off < 1e-4
    else:
        assert 1e-5 < off < COARSE[amp]


@pytest.fixture
def finder_and_stamps(dataset, finder):
    model, _ = load_model(Path(finder))
    return model, Dataset.open(dataset).read_pixels("test", np.arange(6))


def test_maps_of_evidence_are_those_of_a_cpu(finder_and_stamps):
    """Also while training lets convolutions use TF32."""
    model, pixels = finder_and_stamps
    occlusion = {"patch": 16, "stride": 8, "seed": 0}
    expected = (
        Scorer(model)(pixels),
        occlusion_maps(Scorer(model), pixels, **occlusion),
        gradcam_maps(model, pixels),
    )
    torch.backends.cudnn.allow_tf32 = True
    model.to(DEVICE)
    found = (
        Scorer(model, DEVICE)(pixels),
        occlusion_maps(Scorer(model, DEVICE), pixels, **occlusion),
        gradcam_maps(model, pixels, DEVICE),
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_random_weights_for_a_probe_leave_every_generator_as_it_was(finder_and_stamps):
    model, _ = finder_and_stamps
    before = torch.get_rng_state(), torch.cuda.get_rng_state(DEVICE)
    randomised(model.to(DEVICE), seed=1)
    after = torch.get_rng_state(), torch.cuda.get_rng_state(DEVICE)
    assert all(map(torch.equal, before, after))


def test_a_report_of_scores_from_a_gpu_shows_their_stamps(dataset, finder, tmp_path):
    """From the command line, as a user goes from a checkpoint to a page."""

    def run(*words):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output

    for split in ("val", "test"):
        out = tmp_path / f"{split}.parquet"
        run("infer", finder, dataset, "--split", split, "--out", out, "--device", DEVICE.type)
    fast = ("--set", "resamples=100")
    run("evaluate", out, "--calibrate-on", tmp_path / "val.parquet", "--out", tmp_path / "r", *fast)
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("data:image/png") >= 20
