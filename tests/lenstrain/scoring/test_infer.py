"""Scoring: every row once, with the right weights and precision, or nothing at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lensprep.configfile import load_config, to_mapping
from lensprep.dataset import Dataset, NormalizationSpec
from lensprep.dataset.layout import (
    COUNTERFACTUAL,
    DONOR_TASK,
    HOST_TASK,
    PAYLOAD_OFFSET,
    RECORD_STRIDE,
)
from lensprep.errors import CheckpointError, ConfigError, DatasetError, ShardError
from lenstrain.config import Config
from lenstrain.evaluation.scores import read_scores
from lenstrain.networks.d4 import transform
from lenstrain.networks.ensemble import D4Mean
from lenstrain.networks.finder import build_model
from lenstrain.scoring.infer import infer
from lenstrain.training.checkpoint import save_checkpoint
from tests.checkpoints import blank_content
from tests.datasets import SPEC, dataset_fixture, replace_sidecar, tiny_dataset
from tests.familydatasets import family_dataset

REPOSITORY = Path(__file__).parents[3]
ROWS = 50
OPTIONS = ("model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16")


root = dataset_fixture({"train": 8, "test": ROWS}, shard_rows=16)


def weights(seed):
    torch.manual_seed(seed)
    return build_model(load_config(Config, None, OPTIONS).model)


def checkpoint(path, model, ema=None, normalization=SPEC, label_map=None):
    save_checkpoint(
        path,
        {
            **blank_content(),
            "model": model.state_dict(),
            "ema": None if ema is None else ema.state_dict(),
            "config": to_mapping(load_config(Config, None, OPTIONS)),
            "normalization": normalization.to_dict(),
            "label_map": label_map or {"CONTROL": 0, "SIE": 1, "SIS": 1},
            "dataset_id": "trained-on-this",
            "step": 12,
            "epoch": 3,
            "versions": {"torch": "2"},
        },
    )
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("run") / "best.pt", weights(1))


def expected(model, root):
    pixels = torch.from_numpy(Dataset.open(root).read_pixels("test", np.arange(ROWS)))
    with torch.inference_mode():
        return model.eval()(pixels.float()).numpy()


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_every_row_is_scored_once_in_the_order_of_the_split(root, best, tmp_path, batch_size):
    out = tmp_path / "scores.parquet"
    result = infer(best, root, split="test", out=out, batch_size=batch_size, device="cpu")
    table = pq.read_table(out)
    sidecar = Dataset.open(root).read_sidecar("test")
    assert table["key"].to_pylist() == sidecar["key"].to_pylist()
    np.testing.assert_allclose(table["logit"], expected(weights(1), root), rtol=0, atol=1e-5)
    assert np.ptp(table["logit"]) > 1e-3  # not one value for all
    assert (result["rows"], result["split"], result["tta"]) == (ROWS, "test", False)
    assert result["stamps_per_s"] > 0


def test_the_table_has_the_columns_and_types_that_readers_rely_on(root, best, tmp_path):
    infer(best, root, split="test", out=tmp_path / "s.parquet", device="cpu")
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names[:6] == ["key", "task_id", "label", "logit", "region_id", "split"]
    assert table.schema.field("label").type == pa.int8()
    assert table.schema.field("logit").type == pa.float32()
    assert set(table["split"].to_pylist()) == {"test"}
    sidecar = Dataset.open(root).read_sidecar("test")
    for name in sidecar.column_names:
        assert table[name].equals(sidecar[name]), name


def test_counterfactuals_are_scored_like_all_rows_and_named_in_the_table(best, tmp_path):
    root = family_dataset(tmp_path, {"train": 8, "test": 30}, {"test": 5}, shard_rows=16)
    infer(best, root, split="test", out=tmp_path / "s.parquet", device="cpu")
    table, sidecar = pq.read_table(tmp_path / "s.parquet"), Dataset.open(root).read_sidecar("test")
    assert table.num_rows == 30 + 15
    for name in ("key", COUNTERFACTUAL, HOST_TASK, DONOR_TASK):
        assert table[name].equals(sidecar[name]), name
    scores = read_scores(tmp_path / "s.parquet")
    assert (scores.n, len(scores.counterfactuals.logits)) == (30, 15)


def test_the_table_names_its_origin(root, best, tmp_path):
    result = infer(best, root, split="test", out=tmp_path / "s.parquet", device="cpu")
    facts = json.loads(pq.read_schema(tmp_path / "s.parquet").metadata[b"lenstrain"])
    assert facts["checkpoint"] == str(best)
    assert facts["checkpoint_sha256"] == result["checkpoint_sha256"]
    assert len(facts["checkpoint_sha256"]) == 64
    assert facts["dataset_id"] == Dataset.open(root).dataset_id
    assert facts["dataset"] == str(root)
    assert NormalizationSpec.from_dict(facts["normalization"]) == SPEC
    assert (facts["split"], facts["step"], facts["tta"]) == ("test", 12, False)


def test_bf16_rounds_the_logits_and_the_table_says_so(root, best, tmp_path):
    tables = {}
    for precision in ("float32", "bf16"):
        out = tmp_path / f"{precision}.parquet"
        result = infer(best, root, split="test", out=out, device="cpu", precision=precision)
        facts = json.loads(pq.read_schema(out).metadata[b"lenstrain"])
        assert result["precision"] == facts["precision"] == precision
        tables[precision] = pq.read_table(out)["logit"].to_numpy()
    exact, rounded = tables["float32"], tables["bf16"]
    np.testing.assert_allclose(exact, expected(weights(1), root), rtol=0, atol=1e-5)
    assert 1e-5 < np.abs(rounded - exact).max() < 0.1 * np.ptp(exact)


def test_a_precision_that_the_device_lacks_is_refused(root, best, tmp_path):
    out = tmp_path / "s.parquet"
    with pytest.raises(ConfigError, match=r"Precision tf32 needs a GPU .* this is a CPU"):
        infer(best, root, split="test", out=out, device="cpu", precision="tf32")
    with pytest.raises(ConfigError, match="must be one of 'float32', 'tf32', 'bf16', got 'fp16'"):
        infer(best, root, split="test", out=out, device="cpu", precision="fp16")
    assert not list(tmp_path.iterdir())


def test_options_of_numpy_are_plain_ones(root, best, tmp_path):
    infer(best, root, split="test", out=tmp_path / "a.parquet", device="cpu", batch_size=16)
    infer(best, root, split=np.str_("test"), out=tmp_path / "b.parquet", device="cpu",
          batch_size=np.int64(16), tta=np.bool_(False))  # fmt: skip
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    with pytest.raises(ConfigError, match="batch_size must be of type int"):
        infer(best, root, out=tmp_path / "c.parquet", batch_size=16.0)


def test_averaged_weights_are_used_where_the_run_kept_them(root, tmp_path):
    path = checkpoint(tmp_path / "a.pt", weights(1), ema=weights(2))
    infer(path, root, split="test", out=tmp_path / "s.parquet", device="cpu")
    logits = pq.read_table(tmp_path / "s.parquet")["logit"]
    np.testing.assert_allclose(logits, expected(weights(2), root), rtol=0, atol=1e-5)


def test_tta_is_the_mean_over_the_eight_turns_and_flips(root, best, tmp_path):
    infer(best, root, split="test", out=tmp_path / "s.parquet", device="cpu", tta=True)
    logits = pq.read_table(tmp_path / "s.parquet")["logit"].to_numpy()
    model = weights(1).eval()
    pixels = torch.from_numpy(Dataset.open(root).read_pixels("test", np.arange(ROWS))).float()
    views = []
    for flipped in (pixels, pixels.flip(-1)):
        views += [torch.rot90(flipped, turns, (-2, -1)) for turns in range(4)]
    with torch.inference_mode():
        mean = torch.stack([model(view) for view in views]).mean(0).numpy()
    np.testing.assert_allclose(logits, mean, rtol=0, atol=1e-5)


def test_tta_gives_every_orientation_the_same_logit():
    model = D4Mean(weights(3)).eval()
    stamps = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        upright = model(stamps)
        for element in range(8):
            turned = model(transform(stamps, torch.full((4,), element)))
            torch.testing.assert_close(turned, upright, rtol=0, atol=1e-5)


def test_progress_ends_with_all_rows(root, best, tmp_path):
    seen = []
    infer(
        best, root, split="test", out=tmp_path / "s.parquet", batch_size=16, device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(16, 50), (32, 50), (48, 50), (50, 50)]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (
            NormalizationSpec(mode="mad_annulus", clip=10.0, parameters={"inner_px": 20}),
            "inner_px 20",
        ),
        (NormalizationSpec(mode="mad_stamp", clip=20.0), r"mad_stamp \(clip 20\)"),
    ],
)
def test_another_normalisation_is_refused_by_name(root, tmp_path, spec, named):
    path = checkpoint(tmp_path / "a.pt", weights(1), normalization=spec)
    with pytest.raises(CheckpointError, match=rf"{named}.*holds mad_stamp \(clip 10\)"):
        infer(path, root, split="test", out=tmp_path / "s.parquet", device="cpu")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


def test_other_labels_are_refused(root, tmp_path):
    path = checkpoint(tmp_path / "a.pt", weights(1), label_map={"CONTROL": 0, "SIE": 1})
    with pytest.raises(CheckpointError, match="was trained with labels"):
        infer(path, root, split="test", out=tmp_path / "s.parquet", device="cpu")


def test_logits_that_are_not_finite_are_no_scores(root, tmp_path):
    model = weights(1)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    path = checkpoint(tmp_path / "a.pt", model)
    sound = checkpoint(tmp_path / "sound.pt", weights(1))
    with pytest.raises(CheckpointError, match="not finite for 50 of 50 stamps") as caught:
        infer([sound, path], root, split="test", out=tmp_path / "s.parquet", device="cpu")
    assert str(caught.value).startswith(str(path))
    assert "its weights are not: its training has diverged" in str(caught.value)
    assert not (tmp_path / "s.parquet").exists()


def test_a_damaged_pixel_does_not_condemn_the_network(best, tmp_path):
    own = tiny_dataset(tmp_path, {"test": ROWS}, shard_rows=16)
    data = Dataset.open(own)
    shard = data.split("test").shards[1]
    with (own / shard.name).open("r+b") as file:
        file.seek(3 * RECORD_STRIDE + PAYLOAD_OFFSET + 40 * 64)  # within the crop of the network
        file.write(np.full(64 * 10, np.nan, "<f2").tobytes())
    key = data.read_shard_sidecar(shard)["key"][3]
    with pytest.raises(ShardError, match=f"pixels of stamp {key} of .* are not finite"):
        infer(best, own, split="test", out=tmp_path / "s.parquet", device="cpu")


def test_an_error_leaves_the_older_table_and_nothing_else(best, tmp_path):
    own = tiny_dataset(tmp_path, {"test": ROWS}, shard_rows=16)
    out = tmp_path / "out" / "s.parquet"
    infer(best, own, split="test", out=out, device="cpu")
    before = out.read_bytes()
    side = "test/test-000002.parquet"
    table = pq.read_table(own / side)
    replace_sidecar(own, side, table.drop_columns(["task_id"]))
    with pytest.raises(ShardError, match=r"test-000002\.parquet has no column 'task_id'"):
        infer(best, own, split="test", out=out, device="cpu")
    replace_sidecar(own, side, table.drop_columns(["psfsize_r"]))
    with pytest.raises(ShardError, match=r"test-000002\.parquet has other columns"):
        infer(best, own, split="test", out=out, device="cpu")
    os.truncate(own / "test" / "test-000001.tar", 1024)
    with pytest.raises(ShardError, match=r"test-000001\.tar"):
        infer(best, own, split="test", out=out, device="cpu")
    assert out.read_bytes() == before
    assert [p.name for p in out.parent.iterdir()] == ["s.parquet"]


def test_a_missing_checkpoint_or_split_is_one_clear_error(root, best, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        infer(tmp_path / "no.pt", root, split="test", out=tmp_path / "s.parquet", device="cpu")
    with pytest.raises(DatasetError, match="no split 'val'; it has: train, test"):
        infer(best, root, split="val", out=tmp_path / "s.parquet", device="cpu")


@pytest.mark.slow
def test_two_processes_write_the_same_table_as_one(root, best, tmp_path):
    infer(best, root, split="test", out=tmp_path / "one.parquet", batch_size=16, device="cpu")
    program = tmp_path / "score.py"
    program.write_text(
        "import sys\n"
        "from lenstrain.scoring.infer import infer\n"
        "path, data, out = sys.argv[1:]\n"
        "infer(path, data, split='test', out=out, batch_size=8, device='cpu')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(program), str(best), str(root), str(tmp_path / "two.parquet")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(command + arguments, check=True, env=environment, capture_output=True)
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one.drop_columns(["logit"]).equals(two.drop_columns(["logit"]))
    np.testing.assert_allclose(one["logit"], two["logit"], rtol=0, atol=1e-5)
