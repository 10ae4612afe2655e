"""Checkpoints with random weights, and trees with the datasets that were converted from them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from lensprep.configfile import load_config, to_mapping
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import DECALS, open_dataset
from lensprep.dataset.layout import LABEL_MAP
from lensprep.dataset.normalization import normalization_spec
from lenstrain.config import Config
from lenstrain.export import FORMATS, export_all, open_exported
from lenstrain.export.network import FluxFinder
from lenstrain.networks.finder import build_model
from lenstrain.training.checkpoint import load_finder, save_checkpoint
from tests.checkpoints import blank_content
from tests.phase4c import tiny_counterfactuals, tiny_table, write_tree

FINDER = ("model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=24")
SPEC = normalization_spec("mad_annulus")
CALIBRATION = {"kind": "platt", "slope": 1.5, "offset": -0.25, "at_bound": False, "n": 40}


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread):
    """Tiny networks are slow in several."""


def write_checkpoint(path, spec=None, geometry=DECALS, data=None, settings=FINDER):
    """A checkpoint of random weights, whose logits are far from one another."""
    config = load_config(Config, None, [*settings, "data.cache_dir=/nvme/cache"])
    torch.manual_seed(3)
    model = build_model(config.model, geometry)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    spec = spec or normalization_spec(geometry=geometry)
    content = {
        **blank_content(),
        "model": model.state_dict(),
        "ema": None,
        "config": to_mapping(config),
        "normalization": spec.to_dict(),
        "geometry": geometry.to_dict(),
        "label_map": dict(LABEL_MAP if data is None else data.manifest.label_map),
        "dataset": "elsewhere" if data is None else data.uri,
        "dataset_id": "0" * 64 if data is None else data.dataset_id,
        "step": 7,
        "epoch": 2,
        "versions": {"torch": "2.0"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, content)
    return path


def write_report(folder, sha256, calibration=CALIBRATION, *, tta=False, others=()):
    """As much of a report as an export reads."""
    folder.mkdir(parents=True, exist_ok=True)
    members = [{"checkpoint_sha256": digest} for digest in (sha256, *others)]
    scored = {"checkpoint_sha256": sha256, "members": members, "tta": tta}
    fitted = None if calibration is None else calibration | {"fitted_on": "/home/me/val.parquet"}
    content = {"calibration": fitted, "provenance": {"scores_metadata": scored}}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Two trees, the dataset of both, and a checkpoint of it.

    Of the mode that sorts the pixels of an annulus, which runtimes do in ways of their own.
    """
    folder = tmp_path_factory.mktemp("export")
    table = tiny_table(64)
    tree = write_tree(folder / "phase4c", table, row_group_rows=4)
    light = write_tree(folder / "light", tiny_counterfactuals(table, pairs=16), row_group_rows=4)
    convert(
        [str(tree), str(light)], str(folder / "ds"), ConvertConfig(normalize=SPEC.mode), workers=1
    )
    data = open_dataset(folder / "ds")
    best = write_checkpoint(folder / "run" / "checkpoints" / "best.pt", SPEC, data=data)
    return SimpleNamespace(
        folder=folder, trees=[str(tree), str(light)], data=data, dataset=data.uri, best=str(best)
    )


@pytest.fixture(scope="session")
def exported(world):
    """Its files in every format, opened once, and what comparing them on raw stamps said."""
    model, _, sha256 = load_finder(world.best, "cpu")
    report = write_report(world.folder / "report", sha256)
    result = export_all(world.best, world.folder, report=report, source=world.trees)
    files = {suffix: world.folder / f"finder{suffix}" for suffix in FORMATS}
    opened = {suffix: open_exported(path) for suffix, path in files.items()}
    finder = FluxFinder(model, opened[".onnx"].facts)
    return SimpleNamespace(files=files, opened=opened, finder=finder, result=result, report=report)
