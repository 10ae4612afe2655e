"""Datasets and runs for the audit: sound ones, each part of which a test can break."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.configfile import load_config
from lensprep.dataset import Dataset, NormalizationSpec
from lensprep.dataset.writer import write_dataset
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.config import Config
from lenstrain.training.train import train

SPEC = NormalizationSpec(mode="mad_stamp", clip=10.0)
SPLITS = ("train", "val", "test")
TINY = (
    "model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16",
    "data.batch_size=20", "eval.batch_size=20", "train.epochs=1", "train.device=cpu",
    "train.pictures=false",
    "optim.lr=2e-3",
)  # fmt: skip


def make_table(split="train", rows=120, seed=0, **replaced):
    """Sidecar rows without a fault: six a region, regions a degree apart, classes in turn.

    A replacement is a column, or a function of the row numbers; None leaves the column out.
    """
    number = SPLITS.index(split)
    row = np.arange(rows)
    label = row % 2
    region = number * 1000 + row // 6
    rng = np.random.default_rng([seed, number])
    columns = {
        "key": [f"{number + 1:x}{seed:03x}{i:028x}" for i in row],
        "label": pa.array(label, pa.int8()),
        "pixel_hash": [f"{(seed << 40) + number * 10**6 + i:016x}{0:016x}" for i in row],
        "region_id": pa.array(region, pa.int32()),
        "brickname": [f"b{r}" for r in region],
        "task_id": [f"{split}-{i}" for i in row],
        "ra": (region % 360) + (row % 6) * 0.02,
        "dec": np.full(rows, 10.0 * number),
        "lens_model": np.where(label == 1, "SIE", "CONTROL").tolist(),
        "is_control": pa.array(1 - label, pa.int32()),
        "theta_e_arcsec": np.where(label == 1, rng.choice([0.8, 1.0], rows), 0.0),
        "psfsize_r": rng.uniform(1.0, 1.4, rows),
        "psfdepth_r": rng.uniform(23.8, 24.4, rows),
        "ebv": rng.uniform(0, 0.1, rows),
        "selection_set_id": rng.choice(["set1", "set2"], rows).tolist(),
    }
    for name in ("median", "scale", "clip_frac"):
        for band in "grz":
            columns[f"{name}_{band}"] = rng.uniform(0.01, 0.02, rows).astype(np.float32)
    for name, value in replaced.items():
        columns[name] = value(row) if callable(value) else value
    return pa.table({name: value for name, value in columns.items() if value is not None})


def make_pixels(labels, seed=0):
    """Noise; a lens is brighter in the middle."""
    pixels = np.random.default_rng(seed).standard_normal((len(labels), 3, 64, 64), np.float32)
    pixels[np.asarray(labels) == 1, :, 26:38, 26:38] += 1.5
    return pixels.astype(np.float16)


def make_dataset(folder, tables=None, shard_rows=50, pixels=None, spec=SPEC):
    tables = tables or {split: make_table(split) for split in SPLITS}
    parts = {
        split: ((pixels or {}).get(split, make_pixels(table["label"].to_numpy(), i)), table)
        for i, (split, table) in enumerate(tables.items())
    }
    write_dataset(folder, parts, spec, shard_rows=shard_rows)
    return Dataset.open(folder)


def set_account(dataset, **account):
    """Write another account into a manifest."""
    path = dataset.root / "manifest.json"
    content = json.loads(path.read_text())
    content["account"] = account
    path.write_text(json.dumps(content))
    return Dataset.open(dataset.root)


@pytest.fixture
def config():
    """Thresholds with fewer draws."""
    return AuditConfig(resamples=200)


@pytest.fixture
def evidence_of(tmp_path):
    """Evidence over a dataset whose train, val and test tables have some columns replaced."""

    def make(shard_rows=50, pixels=None, only=SPLITS, rows=120, **by_split):
        """Pixels are zeros, unless they are given ({} for noise with lenses in it)."""
        common = by_split.pop("every", {})
        tables = {
            split: make_table(split, **{"rows": rows, **common, **by_split.get(split, {})})
            for split in only
        }
        folder = tmp_path / f"ds{len(list(tmp_path.iterdir()))}"
        if pixels is None:  # nobody looks at them
            pixels = {split: np.zeros((rows, 3, 64, 64), np.float16) for split in only}
        return Evidence(tmp_path / "run", make_dataset(folder, tables, shard_rows, pixels))

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A sound dataset and a run on it: (run folder, dataset folder)."""
    folder = tmp_path_factory.mktemp("audit")
    dataset = make_dataset(folder / "ds")
    train(dataset.uri, load_config(Config, None, TINY), folder / "run")
    return folder / "run", folder / "ds"


@pytest.fixture
def run_evidence(finished):
    run, dataset = finished
    return Evidence(run, Dataset.open(dataset), Supplied())


def write_scores(path, table, logits, **metadata):
    """A scores table of some sidecar rows."""
    table = table.append_column("logit", pa.array(np.asarray(logits, np.float32)))
    table = table.append_column("split", pa.array(["test"] * table.num_rows))
    told = {"split": "test"} | metadata
    pq.write_table(table.replace_schema_metadata({"lenstrain": json.dumps(told)}), path)
    return path


def good_logits(table, seed=0, strength=3.0):
    label = table["label"].to_numpy()
    rng = np.random.default_rng(seed)
    return (label * strength - strength / 2 + rng.normal(0, 1, len(label))).astype(np.float32)
