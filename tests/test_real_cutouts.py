"""Real DR10 pixels through check, convert, verify, inspect and a montage."""

import numpy as np

from lensprep.checks.check import check
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.dataset.normalization import denormalize
from lensprep.dataset.sidecar import read_statistics
from lensprep.inspection.inspect import inspect_dataset
from lensprep.inspection.montage import write_montage
from lensprep.inspection.verify import verify
from tests.realstamps import needs_real_cutouts, real_pixels, real_table, real_tree


@needs_real_cutouts
def test_real_pixels_go_all_the_way_unharmed(tmp_path):
    tree = real_tree(tmp_path, rows=48)
    report = check(tree, pixels=True)
    assert not [f.item for f in report.findings if f.severity == "blocker" and f.passed is False]

    root = tmp_path / "dataset"
    result = convert(str(tree), str(root), ConvertConfig(shard_rows=16), workers=1)
    assert result["accepted"] == result["input_rows"] == report.rows == 48
    outcome = verify(str(root), against=str(tree), workers=1)
    assert outcome["ok"], outcome["faults"]

    inspection = inspect_dataset(root, sample=0)
    assert inspection.record["crc32_agrees"] is True
    # the sky of DR10 coadds: a few thousandths of a nanomaggie a pixel, deepest in g
    noise = [inspection.statistics[f"scale_{band}"]["1"]["median"] for band in "grz"]
    assert 5e-4 < noise[0] < noise[1] < noise[2] < 0.05
    assert len(write_montage(root, tmp_path / "stamps.png", count=16)) == 16

    dataset = Dataset.open(root)
    normalization = dataset.manifest.normalization
    source = dict(zip(real_table(48)["task_id"].to_pylist(), real_pixels(48), strict=True))
    for split in ("train", "val", "test"):
        sidecar = dataset.read_sidecar(split)
        statistics = read_statistics(sidecar)
        stored = dataset.read_pixels(split, np.arange(sidecar.num_rows))
        truth = np.stack([source[task_id] for task_id in sidecar["task_id"].to_pylist()])
        kept = np.abs(stored) < normalization.clip
        assert kept.mean() > 0.8
        # what is stored is the nearest float16, so the flux lies between those of its neighbours
        below, above = (
            denormalize(np.nextafter(stored, np.float16(end)), normalization, *statistics)
            for end in (-np.inf, np.inf)
        )
        assert ((below <= truth) & (truth <= above))[kept].all()
