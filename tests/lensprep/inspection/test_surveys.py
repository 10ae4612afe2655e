"""Inspecting, drawing and verifying stamps of another survey than DECaLS, some of real objects."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from lensprep.dataset import Dataset
from lensprep.dataset.layout import CUTOUT_LABELS, LABEL_MAP
from lensprep.dataset.writer import write_dataset
from lensprep.drawing import Picture
from lensprep.errors import ShardError
from lensprep.inspection.inspect import inspect_dataset
from lensprep.inspection.montage import draw_montage, write_montage
from lensprep.inspection.text import render_text
from lensprep.inspection.verify import verify
from tests.datasets import PAIR, SPEC, tiny_pixels, tiny_table

ROWS = 12


def real_table():
    """Every third row is a real object: a lens of unknown θ_E, or a ring with a price."""
    table = tiny_table(ROWS, geometry=PAIR)
    label = table["label"].to_pylist()
    real = [row % 3 == 0 for row in range(ROWS)]
    models = [("NONLENS", "LENS")[y] if r else ("CONTROL", "SIE")[y]
              for y, r in zip(label, real, strict=True)]  # fmt: skip
    kinds = [("ring $1", "lens")[y] if r else None for y, r in zip(label, real, strict=True)]
    theta = [None if r else x for x, r in zip(table["theta_e_arcsec"].to_pylist(), real,
                                              strict=True)]  # fmt: skip
    table = table.set_column(4, "lens_model", pa.array(models))
    table = table.set_column(5, "theta_e_arcsec", pa.array(theta))
    table = table.append_column("origin", pa.array(["real" if r else None for r in real]))
    table = table.append_column("kind", pa.array(kinds))
    return table.append_column("grade", pa.array(["A" if k == "lens" else None for k in kinds]))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey") / "ds"
    write_dataset(
        folder,
        {"train": (tiny_pixels(ROWS, geometry=PAIR) / 1000, real_table())},
        SPEC,
        shard_rows=8,
        geometry=PAIR,
        label_map=LABEL_MAP | CUTOUT_LABELS,
    )
    return folder


def text_of(inspection):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_text(inspection))
    return console.export_text()


def test_survey_bands_and_sources_are_shown(root):
    found = inspect_dataset(root, sample=9)
    assert found.survey == "pair"
    assert found.sources == {
        "origin": {"real": 4, "simulated": 8},
        "kind": {"lens": 2, "ring $1": 2},
        "grade": {"A": 2},
    }
    assert found.models == {"CONTROL": 4, "LENS": 2, "NONLENS": 2, "SIE": 4}
    assert {"median_nir", "scale_Y", "clip_frac_Y"} <= {*found.statistics}
    assert {"scale_Y", "clip_frac_Y"} <= {*found.histograms}
    assert list(found.pixels) == list(found.record["pixels"]) == ["nir", "Y"]
    assert found.record["crc32_agrees"] is True
    assert found.record["json"]["origin"] == "real"
    assert found.record["key"] in text_of(found)
    text = text_of(replace(found, record=None))
    for part in (
        "format 2, pair, bands nir+Y, 0.3 arcsec/pixel",
        "records of 6,144 bytes, stamps 2 x 32 x 32 float16",
        "origin: real 4, simulated 8",
        "kind: lens 2, ring $1 2",
        "grade: A 2",
    ):
        assert part in text


def test_a_tar_alone_says_its_shape_and_its_sidecar_the_bands(root, tmp_path):
    for name in ("train-000001.tar", "train-000001.parquet"):
        shutil.copy(root / "train" / name, tmp_path)
    found = inspect_dataset(tmp_path / "train-000001.tar", sample=3)
    assert (found.kind, found.survey) == ("tar", None)
    assert found.geometry["shape"] == [2, 32, 32]
    assert list(found.pixels) == ["nir", "Y"]
    assert found.record["crc32_agrees"] is True
    assert "scale_Y" in found.statistics
    (tmp_path / "train-000001.parquet").unlink()
    bare = inspect_dataset(tmp_path / "train-000001.tar", sample=1)
    assert list(bare.pixels) == ["band0", "band1"]
    assert bare.sources == {"origin": {"real": 1, "simulated": 3}, "kind": {"lens": 1}}
    assert bare.splits[tmp_path.name]["bytes"] == (root / "train/train-000001.tar").stat().st_size


@pytest.mark.parametrize(
    "shape", [b"(2, 31, 32), ", b"(9, 32, 32), ", b"(0, 32, 32), ", b"(2, 32, 33), "]
)
def test_a_tar_of_no_stamps_is_refused(root, tmp_path, shape):
    data = (root / "train" / "train-000000.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data.replace(b"(2, 32, 32), ", shape, 1))
    with pytest.raises(ShardError, match=r"x\.tar.* not a (record|shard) of this format") as caught:
        inspect_dataset(tmp_path / "x.tar")
    assert "\n" not in str(caught.value)


def test_stamps_are_drawn_with_what_a_catalogue_says_of_them(root, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lensprep.inspection.montage.draw_montage",
        lambda pictures: drawn.extend(pictures) or draw_montage(pictures),
    )
    keys = write_montage(root, tmp_path / "a.png", count=ROWS)
    assert len(keys) == ROWS
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.1
    assert {picture.image.shape for picture in drawn} == {(*PAIR.shape[1:], 3)}
    assert sorted(stamp.notes for stamp in drawn if stamp.notes) == [
        ("lens", "A"), ("lens", "A"), ("ring $1",), ("ring $1",)
    ]  # fmt: skip


def test_an_unknown_einstein_radius_is_left_out():
    picture = Picture(
        image=np.zeros((*PAIR.shape[1:], 3), np.uint8),
        label=1,
        theta_e_arcsec=float("nan"),
        key="0" * 32,
        notes=("$ring of unbalanced dollars", "A"),
    )
    figure = draw_montage([picture])
    figure.savefig(io.BytesIO(), format="png")
    assert figure.axes[0].texts[0].get_text() == "label 1   $ring of unb   A"


def test_every_byte_is_verified(root, tmp_path):
    assert verify(str(root), workers=1)["faults"] == []
    shutil.copytree(root, tmp_path / "ds")
    shard = Dataset.open(root).split("train").shards[0]
    places = {
        100: "a tar or .npy header is not the writer's",
        PAIR.stride + 600: "a tar or .npy header is not the writer's",
        2 * PAIR.stride + 640: "the pixels do not have the sidecar's CRC-32",
        4 * PAIR.stride - 700: "a tar or .npy header is not the writer's",
        5 * PAIR.stride - 5: "the JSON member is not what the sidecar says",
    }
    data = bytearray((root / shard.name).read_bytes())
    for place in places:
        data[place] ^= 1
    (tmp_path / "ds" / shard.name).write_bytes(data)
    faults = verify(str(tmp_path / "ds"), workers=1)["faults"]
    assert [f["what"] for f in faults if f["row"] is not None] == list(places.values())
    assert [f["row"] for f in faults if f["row"] is not None] == [0, 1, 2, 3, 4]


def test_labels_are_those_of_the_map(root, tmp_path):
    table = real_table()
    models = ["LENS", *table["lens_model"].to_pylist()[1:]]
    table = table.set_column(4, "lens_model", pa.array(models))
    pixels = tiny_pixels(ROWS, geometry=PAIR) / 1000
    for labels, rows in ((LABEL_MAP | CUTOUT_LABELS, [0]), (LABEL_MAP, [0, 3, 6, 9])):
        folder = tmp_path / str(len(rows))
        write_dataset(
            folder, {"train": (pixels, table)}, SPEC,
            shard_rows=ROWS, geometry=PAIR, label_map=labels,
        )  # fmt: skip
        faults = verify(str(folder), workers=1)["faults"]
        assert {f["what"] for f in faults} == {"the label is not the label map's of lens_model"}
        assert [f["row"] for f in faults] == rows
