"""Another network is one file in a folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lensprep
import lenstrain
from tests.datasets import tiny_dataset

TINY = """
from torch import nn


def build(config, bands, side):
    return nn.Sequential(nn.Conv2d(bands, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4
"""


def test_a_network_of_another_file_trains_an_epoch_by_its_name(tmp_path):
    # Links to the files, those of __pycache__ too: nothing is compiled once more.
    shutil.copytree(
        Path(lenstrain.__file__).parent, tmp_path / "lenstrain", copy_function=os.symlink
    )
    (tmp_path / "lenstrain/networks/architectures/tiny.py").write_text(TINY)
    dataset = tiny_dataset(tmp_path, {"train": 24, "val": 12}, shard_rows=32)
    roots = (tmp_path, Path(lensprep.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "lenstrain", "train", str(dataset), "--out", "run",
         "--set", "model.arch=tiny", "--set", "train.epochs=1", "--set", "data.batch_size=12",
         "--set", "train.device=cpu"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'arch = "tiny"' in (tmp_path / "run/config.toml").read_text()
    assert (tmp_path / "run/checkpoints/best.pt").is_file()
