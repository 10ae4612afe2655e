"""`lenstrain probe` as a whole, on a tiny run: its files, its page, its refusals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from lensprep.configfile import load_config
from lensprep.dataset import NormalizationSpec
from lensprep.dataset.writer import write_dataset
from lensprep.transfer import upload
from lenstrain.cli import main
from lenstrain.config import Config
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.probe import default_folder, probe
from lenstrain.probes.words import TITLES
from lenstrain.training.train import train
from tests.datasets import tiny_dataset
from tests.lenstrain.probes.conftest import make_sample
from tests.probes import QUICK, QUICK_SETS

TINY = (
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=24",
    "data.batch_size=20", "eval.batch_size=20", "train.epochs=1", "train.device=cpu",
    "train.pictures=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    splits = {}
    for number, split in enumerate(("train", "val")):
        sample = make_sample(60, seed=number)
        splits[split] = (sample.pixels, sample.table)
    write_dataset(folder / "ds", splits, sample.spec, shard_rows=40)
    train(str(folder / "ds"), load_config(Config, None, TINY), folder / "run")
    best = f"{folder}/run/checkpoints/best.pt"
    arguments = ["probe", best, f"{folder}/ds", "--json", *QUICK_SETS]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return folder, json.loads(result.stdout)


def test_everything_is_written_into_the_run(finished):
    folder, content = finished
    out = folder / "run" / "probe"
    assert content["report"] == str(out / "probe.html")
    written = json.loads((out / "probe.json").read_text())
    assert written["probes"].keys() == content["probes"].keys()
    assert set(TITLES) <= set(written["probes"])
    assert all(written["probes"][name] is not None for name in TITLES)
    assert set(written["readings"]) == set(TITLES)
    assert written["sample"] == {"lenses": 20, "non_lenses": 20, "bright": 20, "regions": 10}
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"views", "scores", "baseline", "injections", "d4", "attribution"}


def test_the_page_needs_nothing_beside_it(finished):
    folder, content = finished
    page = (folder / "run" / "probe" / "probe.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in page
    assert "://" not in page.replace("http://www.w3.org", "")
    for name, text in content["readings"].items():
        assert text.split(".")[0].replace("'", "&#39;") in page
        assert f'id="item-{name}"' in page
    assert "<title>Probes of run: " in page
    assert page.count("See the figure") == 10
    failed = sum(found["passed"] is False for found in content["judged"].values())
    assert page.count(">FAILED<") == failed


def test_light_profiles_are_learnt_on_train_and_judged_beside_the_network(finished):
    _, content = finished
    found = content["probes"]["baseline"]
    assert (found["train_rows"], found["rows"], found["regions"]) == (60, 60, 10)
    assert found["best"] in found["candidates"]
    assert found["candidates"][found["best"]]["auroc"]["value"] > 0.95
    assert "light profiles" in content["readings"]["baseline"]


def test_a_sidecar_without_injection_columns_leaves_probes_out(finished, tmp_path):
    folder, _ = finished
    bare = tiny_dataset(tmp_path, {"train": 40, "val": 40}, signal=True)
    checkpoint = folder / "run" / "checkpoints" / "best.pt"
    content = probe(
        checkpoint, bare, tmp_path / "out", options=load_options("per_class=10", *QUICK[1:])
    )
    assert content["probes"]["flux_matched_null"] is None
    assert content["readings"]["ring_probe"].startswith("Not run")
    assert content["probes"]["null_injection"]["n"] == 5


def test_without_a_train_split_the_page_says_why_there_is_no_baseline(finished, tmp_path):
    folder, _ = finished
    sample = make_sample(40)
    write_dataset(
        tmp_path / "ds", {"val": (sample.pixels, sample.table)}, sample.spec, shard_rows=40
    )
    checkpoint = folder / "run" / "checkpoints" / "best.pt"
    content = probe(checkpoint, tmp_path / "ds", tmp_path / "out", options=load_options(*QUICK))
    assert "no train split" in content["readings"]["baseline"]
    assert "no train split" in (tmp_path / "out" / "probe.html").read_text()


def load_options(*overrides):
    from lenstrain.probes.options import ProbeOptions

    return load_config(ProbeOptions, None, overrides)


def test_another_normalisation_is_refused(finished, tmp_path):
    folder, _ = finished
    other = tiny_dataset(tmp_path, normalization=NormalizationSpec(mode="mad_stamp", clip=5.0))
    result = CliRunner().invoke(main, ["probe", f"{folder}/run/checkpoints/best.pt", str(other)])
    assert result.exit_code == 1
    assert "normalisation" in result.output


def test_a_split_of_one_class_is_refused(finished, tmp_path):
    folder, _ = finished
    sample = make_sample(20)
    rows = np.flatnonzero(sample.labels == 0)
    write_dataset(
        tmp_path / "ds", {"val": (sample.pixels[rows], sample.table.take(rows))}, sample.spec,
        shard_rows=40,
    )  # fmt: skip
    result = CliRunner().invoke(
        main, ["probe", f"{folder}/run/checkpoints/best.pt", str(tmp_path / "ds")]
    )
    assert result.exit_code == 1
    assert "no lenses to probe with" in result.output


@pytest.mark.parametrize(
    "option", ["per_class=1", "fpr=0", "core_arcsec=6.5", "ring_radii_arcsec=[]"]
)
def test_options_out_of_range_are_refused(option):
    result = CliRunner().invoke(main, ["probe", "x.pt", "ds", "--set", option])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


def test_probes_that_do_not_fit_into_memory_say_so_in_a_line(finished, tmp_path):
    folder, _ = finished
    arguments = ["probe", f"{folder}/run/checkpoints/best.pt", f"{folder}/ds"]
    more = ["--out", str(tmp_path / "out"), "--set", "resamples=1000000000000000"]
    result = CliRunner().invoke(main, [*arguments, *more])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Probing 256 stamps at a time ran out of memory" in line
    assert "or resamples lower" in line
    assert not (tmp_path / "out").exists()


def test_the_default_folder_is_the_runs(tmp_path):
    assert default_folder(tmp_path / "checkpoints" / "best.pt") == str(tmp_path / "probe")
    assert default_folder("s3://b/runs/a/checkpoints/best.pt") == "s3://b/runs/a/probe"
    assert default_folder(tmp_path / "loose.pt") == str(tmp_path / "probe")


def test_a_dataset_in_an_object_store_gives_the_same_probes(finished, s3, tmp_path, monkeypatch):
    folder, content = finished
    upload(folder / "ds", s3.uri, s3.options())
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    options = load_config(ProbeOptions, None, QUICK)
    there = probe(folder / "run" / "checkpoints" / "best.pt", s3.uri, tmp_path, options=options)
    for name in ("dataset_id", "sample", "threshold", "probes"):
        assert there[name] == content[name]
