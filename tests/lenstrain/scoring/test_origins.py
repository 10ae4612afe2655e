"""Scoring what is no dataset yet, in parts that are kept: trees, cutouts, ensembles, restarts."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from lensprep.configfile import load_config, to_mapping
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import NormalizationSpec
from lensprep.decode.cutoutfile import read_position
from lensprep.errors import CheckpointError, ConfigError, DatasetError, InputError, StorageError
from lensprep.source.cutouts import open_cutouts
from lenstrain.config import Config
from lenstrain.networks.finder import build_model
from lenstrain.scoring import origins
from lenstrain.scoring.infer import infer
from lenstrain.scoring.parts import FinishedParts
from lenstrain.training.checkpoint import save_checkpoint
from tests.checkpoints import blank_content
from tests.datasets import SPEC, tiny_dataset
from tests.phase4c import stamp_blob, tiny_counterfactuals, tiny_pixels, tiny_table, write_tree
from tests.waiting import wait_until

OPTIONS = ("model.arch=resnet_small", "model.width=8", "model.blocks=[1,1]", "model.crop=16")


def checkpoint(path, seed, normalization=SPEC):
    torch.manual_seed(seed)
    config = load_config(Config, None, OPTIONS)
    save_checkpoint(
        path,
        {
            **blank_content(),
            "model": build_model(config.model).state_dict(),
            "config": to_mapping(config),
            "normalization": normalization.to_dict(),
            "label_map": {"CONTROL": 0, "SIE": 1, "SIS": 1},
            "dataset_id": "trained-on-this",
            "step": 12,
            "epoch": 3,
            "versions": {"torch": "2"},
        },
    )
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("run") / "best.pt", 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), {"test": 50}, shard_rows=16)


def score(checkpoints, source, out, **options):
    options = {"split": "test", "batch_size": 16, "device": "cpu", "workers": 1} | options
    result = infer(checkpoints, source, out=out, **options)
    return result, pq.read_table(out)


def facts_of(path):
    return json.loads(pq.read_schema(path).metadata[b"lenstrain"])


# ------------------------------------------------------------------------------------ trees


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree with a damaged blob, a filtered row and a row that is there twice, all in test."""
    table = tiny_table(96)
    rows = [i for i, s in enumerate(table["region_split"].to_pylist()) if s == "test"]
    blobs = table["stamp_npz"].to_pylist()
    blobs[rows[3]] = blobs[rows[3]][:100]
    fine = table["cutout_ok"].to_pylist()
    fine[rows[5]] = 0
    for name, values in (("stamp_npz", blobs), ("cutout_ok", fine)):
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table[name].type))
    table = pa.concat_tables([table, table.slice(rows[-1], 1)])
    folder = tmp_path_factory.mktemp("tree")
    return write_tree(folder / "stamps", table, row_group_rows=8)


@pytest.fixture(scope="module")
def tree_scores(tree, best, tmp_path_factory):
    """What scoring it says, and the file written."""
    out = tmp_path_factory.mktemp("scored") / "tree.parquet"
    return score(best, tree, out)[0], out


def test_a_tree_gets_the_scores_of_its_converted_dataset(tree, tree_scores, best, tmp_path):
    config = ConvertConfig(max_reject_rate=0.2, normalize=SPEC.mode)
    convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    _, converted = score(best, tmp_path / "ds", tmp_path / "ds.parquet")
    result, plain = tree_scores[0], pq.read_table(tree_scores[1])
    assert plain.num_rows == result["rows"] > 10
    assert set(plain["key"].to_pylist()) == set(converted["key"].to_pylist())
    columns = ["key", "label", "region_id", "split", "pixel_hash", "task_id", "theta_e_arcsec"]
    one, two = (t.sort_by("key").select(columns) for t in (plain, converted))
    assert one.equals(two)
    logits = [t.sort_by("key")["logit"].to_numpy() for t in (plain, converted)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    assert np.ptp(logits[0]) > 1e-3


def test_every_row_of_a_tree_is_scored_or_accounted_for(tree_scores):
    result, out = tree_scores
    table = pq.read_table(out)
    # 24 rows of the split, and one of them twice.
    assert result["filtered"] == {"cutout_not_ok": 1}
    assert result["rejected"] == {"duplicate_row": 1, "truncated": 1}
    assert result["rows"] == table.num_rows == 25 - 3
    rejects = pq.read_table(result["rejects"])
    assert sorted(rejects["reason"].to_pylist()) == ["cutout_not_ok", "duplicate_row", "truncated"]
    assert rejects["source_file"].null_count == 0
    facts = facts_of(out)
    assert facts["account"]["rejected"] == result["rejected"]
    assert facts["source"]["kind"] == "tree"
    assert len(facts["source"]["digest"]) == 64
    assert facts["dataset_id"] is None


def test_stamps_of_a_tree_are_normalised_as_the_checkpoint_asks(tree, tmp_path):
    spec = NormalizationSpec(mode="sqrt", clip=4.0)
    other = checkpoint(tmp_path / "sqrt.pt", 1, spec)
    _, table = score(other, tree, tmp_path / "tree.parquet")
    config = ConvertConfig(max_reject_rate=0.2, normalize="sqrt", clip=4.0)
    convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    _, converted = score(other, tmp_path / "ds", tmp_path / "ds.parquet")
    logits = [t.sort_by("key")["logit"].to_numpy() for t in (table, converted)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    assert facts_of(tmp_path / "tree.parquet")["normalization"] == spec.to_dict()


def test_counterfactuals_of_a_tree_are_scored_and_named_in_the_table(best, tmp_path):
    made = tiny_counterfactuals(tiny_table(96))
    _, table = score(best, write_tree(tmp_path / "made", made), tmp_path / "s.parquet")
    ours = made.filter(pc.equal(made["region_split"], "test")).sort_by("task_id")
    names = ["task_id", "lens_model", "counterfactual", "host_task_id", "donor_task_id"]
    assert table.sort_by("task_id").select(names).equals(ours.select(names))
    lensed = pc.equal(table["counterfactual"], "lensed")
    assert table["label"].to_pylist() == lensed.cast(pa.int8()).to_pylist()


def test_row_groups_without_rows_and_columns_without_a_type_cost_a_tree_no_score(
    best, tmp_path, caplog
):
    table = tiny_table(24, region_split="test")
    whole, _ = score(best, write_tree(tmp_path / "whole", table), tmp_path / "whole.parquet")

    def change(part, name):
        first = "part-00000" in name
        return part.append_column("night", pa.array([1 if first else "1"] * part.num_rows))

    root = write_tree(tmp_path / "holes", table, change=change)
    path = next(root.rglob("part-00000*.parquet"))
    part = pq.ParquetFile(path).read()
    with pq.ParquetWriter(path, part.schema) as writer:
        for rows in (part.slice(0, 0), part.slice(0, 5), part.slice(0, 0), part.slice(5)):
            writer.write_table(rows)
    pq.write_table(part.slice(0, 0), path.with_name("part-00009.parquet"))
    found, scores = score(best, root, tmp_path / "holes.parquet")
    assert found["rows"] == whole["rows"] == 24
    expected = pq.read_table(tmp_path / "whole.parquet", columns=["key", "logit"])
    assert scores.select(["key", "logit"]).equals(expected)
    assert "column night is int64 in region_split=test/part-00000" in caplog.text


def test_a_flat_tree_gives_the_rows_of_the_split_alone(best, tmp_path):
    table = tiny_table(48)
    tree = write_tree(tmp_path / "flat", table, hive=False, row_group_rows=48)
    _, scores = score(best, tree, tmp_path / "s.parquet", split="val")
    names, splits = (table[name].to_pylist() for name in ("task_id", "region_split"))
    expected = [name for name, split in zip(names, splits, strict=True) if split == "val"]
    assert sorted(scores["task_id"].to_pylist()) == sorted(expected)


def test_a_tree_without_the_split_or_with_damage_is_one_clear_error(tree, best, tmp_path):
    with pytest.raises(InputError, match="no split 'tset'; there are: train, val, test"):
        score(best, tree, tmp_path / "s.parquet", split="tset")
    only = write_tree(tmp_path / "val", tiny_table(8, region_split="val"))
    with pytest.raises(InputError, match=r"has no rows of split 'test'; it has some of: val"):
        score(best, only, tmp_path / "s.parquet")
    damaged = write_tree(tmp_path / "damaged", tiny_table(16, region_split="test"))
    file = sorted(damaged.rglob("*.parquet"))[1]
    content = bytearray(file.read_bytes())
    content[1000:3000] = bytes(2000)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00001.*cannot be read"):
        score(best, damaged, tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()


# ---------------------------------------------------------------------------------- cutouts


def write_fits(path, cube, ra=10.0, dec=-5.0, scale=0.262, bands="grz"):
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = [(cube.shape[2] + 1) / 2, (cube.shape[1] + 1) / 2]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    header = wcs.to_header()
    header["BANDS"] = bands
    fits.PrimaryHDU(cube.astype(">f4"), header).writeto(path)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    """Five cutouts of 101 x 101 in different clothes, and their stamps of 64 x 64."""
    folder = tmp_path_factory.mktemp("cutouts")
    rng = np.random.default_rng(5)
    large = rng.normal(0, 0.01, (5, 3, 101, 101)).astype(np.float32)
    stamps = tiny_pixels(5, seed=3)
    large[:, :, 18:82, 18:82] = stamps
    write_fits(folder / "a.fits", large[0], ra=10.0)
    write_fits(folder / "b.fits", large[1][[2, 0, 1]], ra=10.1, bands="zgr")
    np.savez(folder / "c.npz", cutout=np.moveaxis(large[2], 0, 2))
    (folder / "d.npz").write_bytes(stamp_blob(stamps[3]))
    hdus = [fits.ImageHDU(large[4][i], name=f"IMAGE_{b}") for i, b in enumerate("GRZ")]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / "e.fits")
    return folder, stamps


@pytest.fixture
def own_cutouts(cutouts, tmp_path):
    """The same in a folder that a test may change."""
    shutil.copytree(cutouts[0], tmp_path / "cutouts")
    return tmp_path / "cutouts", cutouts[1]


def csv(path, rows, head="key,ra,dec"):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def same_stamps_in_a_tree(cutouts, best, tmp_path_factory):
    """Scores of the same pixels by way of a tree."""
    stamps, folder = cutouts[1], tmp_path_factory.mktemp("same")
    rows = len(stamps)
    blobs = [stamp_blob(s) for s in stamps]
    names = [f"{i:064x}" for i in range(rows)]
    table = tiny_table(rows, stamp_npz=blobs, task_id=names, region_split="test")
    tree = write_tree(folder / "same", table, files_per_split=1)
    _, scores = score(best, tree, folder / "same.parquet")
    return scores.sort_by("task_id")


def test_cutouts_of_every_kind_get_the_score_of_their_middle_pixels(
    cutouts, same_stamps_in_a_tree, best, tmp_path
):
    folder, same = cutouts[0], same_stamps_in_a_tree
    rows = [f"{key},{10 + i / 10},-5,{i % 2},{i}" for i, key in enumerate("abcde")]
    catalog = csv(tmp_path / "c.csv", rows, "key,ra,dec,label,region_id")
    result, table = score(best, folder, tmp_path / "s.parquet", catalog=catalog)
    assert table["key"].to_pylist() == list("abcde")
    np.testing.assert_allclose(table["logit"], same["logit"], rtol=0, atol=1e-5)
    assert table["pixel_hash"].to_pylist() == same["pixel_hash"].to_pylist()
    assert table["label"].to_pylist() == [0, 1, 0, 1, 0]
    assert table["ra"].to_pylist() == [10.0, 10.1, 10.2, 10.3, 10.4]
    assert result["split"] is None
    assert table["split"].null_count == 5


def test_cutouts_without_keys_are_found_by_the_position_that_they_state(
    cutouts, same_stamps_in_a_tree, best, tmp_path
):
    folder = cutouts[0]
    catalog = csv(tmp_path / "c.csv", ["10.1,-5.0001", "10.00005,-5", "20,-5"], "ra,dec")
    result, table = score(best, folder, tmp_path / "s.parquet", catalog=catalog)
    assert table["key"].to_pylist() == ["b", "a"]
    assert table["source_file"].to_pylist() == ["b.fits", "a.fits"]
    assert result["rejected"] == {"no_cutout": 1}
    assert facts_of(tmp_path / "s.parquet")["source"]["files_of_no_row"] == 3
    same = same_stamps_in_a_tree["logit"].take([1, 0])
    np.testing.assert_allclose(table["logit"], same, rtol=0, atol=1e-5)


def test_a_catalogue_with_other_headings_is_read_alike(
    cutouts, same_stamps_in_a_tree, best, tmp_path
):
    folder, _ = cutouts
    vizier = csv(tmp_path / "vizier.csv", ["b,10.1,-5.0001,10"], "key,RA [deg],DEJ2000,ra_err")
    own = csv(tmp_path / "own.csv", ["b,10.1,-5.0001"], "key,lon,lat")
    _, found = score(best, folder, tmp_path / "vizier.parquet", catalog=vizier)
    columns = {"ra": "lon", "dec": "lat"}
    _, named = score(best, folder, tmp_path / "own.parquet", catalog=own, catalog_columns=columns)
    for table in (found, named):
        assert table.select(["key", "ra", "dec"]).to_pylist() == [
            {"key": "b", "ra": 10.1, "dec": -5.0001}
        ]
        assert table["logit"].equals(found["logit"])
    same = same_stamps_in_a_tree["logit"].take([1])
    np.testing.assert_allclose(found["logit"], same, rtol=0, atol=1e-5)
    assert set(named.column_names) == set(found.column_names) - {"ra_err"}


def test_a_catalogue_of_any_format_is_read_alike(tmp_path):
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for name in "ab":
        np.savez(folder / f"{name}.npz", cutout=np.zeros((3, 64, 64), np.float32))
    rows = {"key": ["a", "b"], "ra": [10.0, 202.5], "dec": [5.5, -5.5], "label": [1, 0]}
    Table(rows).write(tmp_path / "c.vot", format="votable")
    Table(rows).write(tmp_path / "c.fits")
    pq.write_table(pa.table(rows | {
        "key": pa.array(rows["key"]).dictionary_encode(), "label": pa.array([True, False])
    }), tmp_path / "c.parquet")  # fmt: skip
    view = pa.array(rows["key"]).cast(pa.string_view())
    pq.write_table(pa.table(rows | {"key": view}), tmp_path / "view.parquet")
    (tmp_path / "c.csv").write_text("key;ra;dec;label\r\na;10,0;5,5;1\r\nb;202,5;-5,5;0\r\n")
    (tmp_path / "c.txt").write_text(
        "# key  RAJ2000    DEJ2000   label\na 00:40:00 +05:30:00 1\nb 13:30:00 -05:30:00 0\n"
    )
    names = ["c.vot", "c.fits", "c.parquet", "view.parquet", "c.csv", "c.txt"]
    for name in names:
        found = open_cutouts(folder, tmp_path / name, read_position).table
        assert found.column_names[:4] == ["key", "ra", "dec", "file"]
        assert found["file"].to_pylist() == ["a.npz", "b.npz"], name
        assert found["ra"].to_pylist() == pytest.approx(rows["ra"]), name
        assert found["dec"].to_pylist() == pytest.approx(rows["dec"]), name
        assert found["label"].cast(pa.int8()).to_pylist() == [1, 0], name
    own = csv(tmp_path / "own.csv", ["a,1,2,b.npz", "b,3,4,a.npz"], "objid,ra,dec,path")
    columns = {"key": "objid", "file": "path"}
    found = open_cutouts(folder, own, read_position, columns).table
    assert found.select(["key", "file"]).to_pylist() == [
        {"key": "a", "file": "b.npz"}, {"key": "b", "file": "a.npz"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        (["a,1,2", ",1,2", '" ",1,2'], "key,ra,dec", "2 rows have no key"),
        (["a,1,2", "b,,2", "c,1,nan"], "key,ra,dec", r"2 rows have no position \(null or NaN\)"),
        (["a,1,2"], "key,ra,ra", "has the column 'ra' more than once"),
        (["a,1,2"], "objid,ra,dec", "No row of .* has a cutout|states its position"),
    ],
)
def test_what_a_catalogue_lacks_is_counted(cutouts, tmp_path, rows, head, message):
    with pytest.raises(InputError, match=message):
        open_cutouts(cutouts[0], csv(tmp_path / "c.csv", rows, head), read_position)


def test_cutouts_of_which_none_can_be_scored_are_one_clear_error(own_cutouts, best, tmp_path):
    folder, _ = own_cutouts
    (folder / "a.fits").write_text("<html>")
    catalog = csv(tmp_path / "c.csv", ["a,10,-5"])
    message = r"no stamp to score: wrong_format 1 \(first: a.fits, neither FITS, NPZ"
    with pytest.raises(InputError, match=message):
        score(best, folder, tmp_path / "s.parquet", catalog=catalog)


def test_a_survey_is_of_a_tree_alone(dataset, best, tmp_path):
    with pytest.raises(ConfigError, match="--survey says what a tree of parquet files is"):
        infer(best, dataset, split="val", out=tmp_path / "val.parquet", survey="hsc")
    assert not (tmp_path / "val.parquet").exists()


def test_cutouts_without_a_catalogue_are_not_called_a_dataset(own_cutouts, best, tmp_path):
    folder, _ = own_cutouts
    for place in (folder, tmp_path):
        with pytest.raises(DatasetError, match=r"it is a folder of cutouts.* --catalog TABLE"):
            score(best, place, tmp_path / "s.parquet")


def test_cutouts_that_cannot_be_scored_have_a_reason_each(own_cutouts, best, tmp_path):
    folder, stamps = own_cutouts
    cube = stamps[0]
    broken = cube.copy()
    broken[1, 30, 30] = np.nan
    np.savez(folder / "nan.npz", cutout=broken)
    np.savez(folder / "small.npz", cutout=cube[:, :32, :32])
    np.savez(folder / "two.npz", image_g=cube[0], image_r=cube[1])
    np.savez(folder / "flat.npz", cutout=np.ones_like(cube))
    np.savez(folder / "pickle.npz", cutout=np.array([{}], dtype=object))
    (folder / "text.fits").write_text("this is no FITS file")
    packed = gzip.compress((folder / "b.fits").read_bytes())
    (folder / "altered.fits.gz").write_bytes(packed[:-4000] + bytes(9) + packed[-3991:])
    write_fits(folder / "hst.fits", cube, scale=0.05)
    names = ["nan", "small", "two", "flat", "pickle", "text", "altered", "hst", "gone", "a"]
    catalog = csv(tmp_path / "c.csv", [f"{name},1,2" for name in names])
    result, table = score(best, folder, tmp_path / "s.parquet", catalog=catalog)
    assert table["key"].to_pylist() == ["a"]
    found = pq.read_table(result["rejects"])
    reasons = dict(zip(found["task_id"].to_pylist(), found["reason"].to_pylist(), strict=True))
    assert reasons == {
        "nan": "nonfinite",
        "small": "wrong_shape",
        "two": "missing_band",
        "flat": "constant_band",
        "pickle": "object_array",
        "text": "wrong_format",
        "altered": "crc_mismatch",
        "hst": "wrong_pixel_scale",
        "gone": "no_cutout",
    }
    details = dict(zip(found["task_id"].to_pylist(), found["detail"].to_pylist(), strict=True))
    assert details["text"] == "neither FITS, NPZ, NPY nor HDF5: begins with b'this is no FITS '"
    assert details["gone"] == "no file is called gone.fits, gone.npz, ..."
    assert all(details.values())


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        (["a,10"], "key,ra", "has no column dec .* --catalog-column dec=COLUMN"),
        (["a,10,95"], "key,ra,dec", "1 rows have a position .*first: row 1, key a: ra 10, dec 95"),
        (["a,10,5", "a,11,5"], "key,ra,dec", "key a occurs 2 times"),
        (["x,10,5"], "key,ra,dec", "No row of .* has a cutout"),
        (["../c.csv,10,5"], "file,ra,dec", "lies outside"),
        (["a,ten,5"], "key,ra,dec", "ra holds string .'ten'., not degrees"),
        (["a,10,5"], "key,RA [rad],DEC [deg]", "column RA .rad. is in rad, not in degrees"),
        ([], "key,ra,dec", "has no rows"),
        (["a,10,5,lens"], "key,ra,dec,label", "label holds string, not 0 and 1"),
    ],
)
def test_a_bad_catalogue_is_one_clear_error(cutouts, best, tmp_path, rows, head, message):
    catalog = csv(tmp_path / "c.csv", rows, head)
    with pytest.raises(InputError, match=message):
        score(best, cutouts[0], tmp_path / "s.parquet", catalog=catalog)
    assert not (tmp_path / "s.parquet").exists()
    assert not list(tmp_path.glob(".*"))


# --------------------------------------------------------------- ensembles and embeddings


def test_an_ensemble_is_the_mean_logit_with_each_member_beside_it(dataset, best, tmp_path):
    second = checkpoint(tmp_path / "b.pt", 2)
    _, one = score(best, dataset, tmp_path / "1.parquet")
    _, two = score(second, dataset, tmp_path / "2.parquet")
    result, both = score([best, second], dataset, tmp_path / "12.parquet")
    for name, alone in (("logit_0", one), ("logit_1", two)):
        np.testing.assert_allclose(both[name], alone["logit"], rtol=0, atol=1e-6)
    mean = (one["logit"].to_numpy() + two["logit"].to_numpy()) / 2
    np.testing.assert_allclose(both["logit"], mean, rtol=0, atol=1e-6)
    assert both.schema.field("logit_1").type == pa.float32()
    assert len(result["members"]) == 2
    facts = facts_of(tmp_path / "12.parquet")
    assert [m["checkpoint_sha256"] for m in facts["members"]] == result["members"]
    assert facts["checkpoint_sha256"] not in result["members"]


def test_members_of_an_ensemble_must_see_the_same_pixels(dataset, tree, best, tmp_path):
    other = checkpoint(tmp_path / "b.pt", 2, NormalizationSpec(mode="mad_stamp", clip=20.0))
    for source in (dataset, tree):
        with pytest.raises(CheckpointError, match=r"b\.pt was trained .* mad_stamp \(clip 20\)"):
            score([best, other], source, tmp_path / "s.parquet")


@pytest.mark.parametrize("tta", [False, True])
def test_embeddings_are_what_the_head_turns_into_the_logit(dataset, best, tmp_path, tta):
    _, table = score(best, dataset, tmp_path / "s.parquet", embeddings=True, tta=tta)
    vectors = np.array(table["embedding"].to_pylist())
    state = torch.load(best, weights_only=True)["model"]
    weight, bias = state["head.weight"].numpy()[0], state["head.bias"].numpy()[0]
    assert vectors.shape == (50, weight.size)
    # The head is linear, so the mean over turns and flips goes through it.
    np.testing.assert_allclose(vectors @ weight + bias, table["logit"], rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------- restarts


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(origins, "PART_ROWS", 16)


def test_finished_parts_are_kept_and_not_scored_again(dataset, best, tmp_path, small_parts):
    whole, _ = score(best, dataset, tmp_path / "whole.parquet")
    assert whole["resumed_rows"] == 0
    out = tmp_path / "s.parquet"

    def stop(done, total):
        if done == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(best, dataset, out, progress=stop)
    assert not out.exists()
    parts = tmp_path / ".s.parquet.parts"
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    assert len(kept) == 2
    seen = []
    result, _ = score(best, dataset, out, progress=lambda done, _: seen.append(done))
    assert result["resumed_rows"] == 32
    assert seen == [48, 50]
    assert not parts.exists()
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_parts_of_another_model_are_not_taken_for_these(dataset, best, tmp_path, small_parts):
    out = tmp_path / "s.parquet"

    def stop(done, total):
        if done == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(best, dataset, out, progress=stop)
    other = checkpoint(tmp_path / "b.pt", 2)
    result, table = score(other, dataset, out)
    assert result["resumed_rows"] == 0
    _, fresh = score(other, dataset, tmp_path / "fresh.parquet")
    assert table.equals(fresh)


def test_parts_of_another_precision_are_not_taken_for_these(dataset, best, tmp_path, small_parts):
    out = tmp_path / "s.parquet"

    def stop(done, total):
        if done == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(best, dataset, out, progress=stop)
    result, rounded = score(best, dataset, out, precision="bf16")
    assert result["resumed_rows"] == 0
    _, fresh = score(best, dataset, tmp_path / "fresh.parquet", precision="bf16")
    assert rounded.equals(fresh)


# ---------------------------------------------------------------- reading and writing meanwhile


def test_stamps_are_scored_while_a_slow_store_takes_the_parts(
    dataset, best, tmp_path, small_parts, monkeypatch
):
    """Part 0 is written once part 2 has been scored; one thread alone would wait for itself."""
    score(best, dataset, tmp_path / "whole.parquet")
    scored_two_more, write = threading.Event(), FinishedParts.write
    in_time = []

    def slow_write(self, index, *tables):
        in_time.append(scored_two_more.wait(60))
        write(self, index, *tables)

    monkeypatch.setattr(FinishedParts, "write", slow_write)
    out = tmp_path / "s.parquet"
    score(best, dataset, out, progress=lambda done, _: done == 48 and scored_two_more.set())
    assert in_time == [True] * 4
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_columns_are_read_while_the_stamps_of_their_part_are_scored(
    dataset, best, tmp_path, monkeypatch
):
    begun, in_time, read = threading.Event(), [], origins.DatasetOrigin._columns

    def told(*arguments):
        begun.set()
        return read(*arguments)

    monkeypatch.setattr(origins.DatasetOrigin, "_columns", told)
    score(best, dataset, tmp_path / "s.parquet",
          progress=lambda *_: in_time.append(begun.wait(60)))  # fmt: skip
    assert in_time == [True] * 4  # from the first of the four batches of the one part


def test_a_part_that_cannot_be_written_ends_the_run_with_that_error(
    dataset, best, tmp_path, small_parts
):
    out = tmp_path / "s.parquet"
    parts = tmp_path / ".s.parquet.parts"

    def replace_folder(done, total):
        if done == 16:
            shutil.rmtree(parts)
            parts.touch()

    with pytest.raises(StorageError, match=r"part-00000.\.parquet could not be written"):
        score(best, dataset, out, progress=replace_folder)
    assert not out.exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("lenstrain-parts")]


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "lenstrain", "infer", *map(str, arguments)]
    repository = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_from_a_tree(best, tmp_path):
    tree = write_tree(
        tmp_path / "t", tiny_table(5000, region_split="test"), row_group_rows=500, files_per_split=2
    )
    infer(best, tree, split="test", out=tmp_path / "one.parquet", device="cpu", batch_size=512)
    options = ["--split", "test", "--out", tmp_path / "two.parquet", "--device", "cpu", "--json"]
    process = torchrun(2, best, tree, *options)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 5000
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one.drop_columns(["logit"]).equals(two.drop_columns(["logit"]))
    np.testing.assert_allclose(one["logit"], two["logit"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_of_two_processes_is_finished_by_one(best, tmp_path):
    """SIGKILL in the middle; the one that goes on scores the missing parts alone."""
    folder = tiny_dataset(tmp_path, {"test": 60_000}, shard_rows=8192)
    out = tmp_path / "s.parquet"
    options = ["--out", out, "--device", "cpu", "--batch-size", "512", "--tta"]
    process = torchrun(2, best, folder, "--split", "test", *options)
    parts = tmp_path / ".s.parquet.parts"
    wait_until(lambda: len(list(parts.glob("part-*.parquet"))) >= 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.communicate(timeout=60)
    assert not out.exists()
    result = infer(best, folder, split="test", out=out, device="cpu", batch_size=512, tta=True)
    assert 2 * 8192 <= result["resumed_rows"] < 60_000
    table = pq.read_table(out, columns=["key"])
    assert len(set(table["key"].to_pylist())) == 60_000
