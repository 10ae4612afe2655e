"""Montages: which stamps are drawn, and that the pixels drawn are those of the stamps."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import DECALS, Dataset, open_dataset
from lensprep.dataset.rgb import lupton_rgb
from lensprep.drawing import Picture
from lensprep.errors import DatasetError
from lensprep.inspection.montage import draw_montage, write_montage
from tests.phase4c import (
    tiny_counterfactuals,
    tiny_pixels,
    tiny_table,
    tiny_tree,
    write_tree,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tiny_tree(tmp_path_factory.mktemp("montage"), 80)


@pytest.fixture(scope="module")
def dataset(tree):
    root = tree.parent / "dataset"
    convert(str(tree), str(root), ConvertConfig(shard_rows=16), workers=1)
    return root


def labels_of(dataset, split, keys):
    table = Dataset.open(dataset).read_sidecar(split, ["key", "label"])
    known = dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))
    return [known[key] for key in keys]


def test_half_of_the_stamps_are_of_each_class_and_none_comes_twice(dataset, tmp_path):
    keys = write_montage(dataset, tmp_path / "a.png", count=12)
    assert len(set(keys)) == 12
    assert labels_of(dataset, "train", keys) == [0] * 6 + [1] * 6
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.ndim == 3
    assert picture.std() > 0.1


def test_seed_decides_which_stamps(dataset, tmp_path):
    first = write_montage(dataset, tmp_path / "a.png", count=8, seed=1)
    assert write_montage(dataset, tmp_path / "b.png", count=8, seed=1) == first
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert write_montage(dataset, tmp_path / "c.png", count=8, seed=2) != first


def test_small_split_gives_what_it_has(dataset, tmp_path):
    keys = write_montage(dataset, tmp_path / "a.png", split="val", count=1000)
    assert len(keys) == Dataset.open(dataset).split("val").rows


def test_one_shard_gives_its_own_stamps(dataset, tmp_path):
    tar = dataset / "train" / "train-000000.tar"
    keys = write_montage(tar, tmp_path / "a.png", count=1000)
    assert len(keys) == Dataset.open(dataset).split("train").shards[0].rows


def picture(label, flux=0.3, key="0123456789abcdef" * 2):
    image = lupton_rgb(tiny_pixels(1)[0] * flux, DECALS)
    return Picture(image=image, label=label, theta_e_arcsec=0.6 * label, key=key)


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_label_theta_e_and_key_stand_under_each_stamp():
    figure = draw_montage([picture(0), picture(1)])
    assert texts_of(figure) == [
        "label 0",
        "0123456789abcdef\n0123456789abcdef",
        "label 1   θ_E 0.60″",
        "0123456789abcdef\n0123456789abcdef",
    ]


def test_the_kind_of_a_counterfactual_stands_beside_its_label():
    kinds = ("unlensed", "lensed")
    figure = draw_montage([replace(picture(n), notes=(kinds[n],)) for n in (0, 1)])
    assert texts_of(figure)[::2] == ["label 0   unlensed", "label 1   θ_E 0.60″   lensed"]


def test_the_kinds_drawn_are_those_of_the_rows(tmp_path, monkeypatch):
    made = write_tree(tmp_path / "made", tiny_counterfactuals(tiny_table(40)))
    convert(str(made), str(tmp_path / "ds"), ConvertConfig(), workers=1)
    drawn = []
    monkeypatch.setattr(
        "lensprep.inspection.montage.draw_montage",
        lambda pictures: drawn.extend(pictures) or draw_montage(pictures),
    )
    write_montage(tmp_path / "ds", tmp_path / "a.png", count=8)
    assert [s.notes for s in drawn] == [(("unlensed", "lensed")[s.label],) for s in drawn]
    assert len(drawn) == 8


def test_classes_stand_side_by_side_and_nothing_overlaps():
    figure = draw_montage([picture(n % 2) for n in range(22)])
    boxes = [axes.get_position() for axes in figure.axes]
    assert max(box.x1 for box in boxes[:11]) < min(box.x0 for box in boxes[11:])
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert [text.get_text() for text in figure.texts] == ["non-lenses (11)", "lenses (11)"]


@pytest.mark.parametrize("mode", ["mad_stamp", "mad_annulus", "asinh_survey", "sqrt"])
def test_every_normalisation_is_undone_before_drawing(tree, tmp_path, mode, monkeypatch):
    root = tmp_path / "dataset"
    convert(str(tree), str(root), ConvertConfig(normalize=mode, clip=1000.0), workers=1)
    drawn = {}
    monkeypatch.setattr(
        "lensprep.inspection.montage.draw_montage",
        lambda pictures: (
            drawn.update({each.key: each.image for each in pictures}) or draw_montage(pictures[:2])
        ),
    )
    write_montage(root, tmp_path / "a.png", count=16)
    sidecar = Dataset.open(root).read_sidecar("train", ["key", "task_id"])
    ids = dict(zip(sidecar["key"].to_pylist(), sidecar["task_id"].to_pylist(), strict=True))
    source = dict(zip(tiny_table(80)["task_id"].to_pylist(), tiny_pixels(80), strict=True))
    assert len(drawn) == 16
    split = open_dataset(root)["train"]
    for key, image in drawn.items():
        flux = split.stamp(key).restored()
        # float16 keeps 11 bits of the stored value
        np.testing.assert_allclose(flux, source[ids[key]], rtol=3e-3, atol=3e-4)
        np.testing.assert_array_equal(image, lupton_rgb(flux))


def test_tar_without_its_manifest_cannot_be_drawn_and_says_why(dataset, tmp_path):
    for name in ("val-000000.tar", "val-000000.parquet"):
        (tmp_path / name).write_bytes((dataset / "val" / name).read_bytes())
    with pytest.raises(DatasetError, match="no manifest, so its normalisation is unknown"):
        write_montage(tmp_path / "val-000000.tar", tmp_path / "a.png")
    (tmp_path / "val-000000.parquet").unlink()
    with pytest.raises(DatasetError, match="no sidecar"):
        write_montage(tmp_path / "val-000000.tar", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_folder_that_is_no_dataset_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"has no manifest\.json: it is empty"):
        write_montage(tmp_path, tmp_path / "a.png")
