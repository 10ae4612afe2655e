"""Stamps of the report from where they were scored, whatever that was."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from matplotlib import image

from lensprep.dataset import DECALS, NormalizationSpec
from lensprep.dataset.normalization import (
    MODES,
    band_statistics,
    denormalize,
    normalization_spec,
    normalize,
)
from lensprep.dataset.rgb import lupton_rgb
from lensprep.dataset.writer import write_dataset
from lensprep.decode.parts import decode_parts, plan_tree
from lensprep.errors import InputError, ScoresError
from lenstrain.pages.examples import _stretched, open_stamps, png_uri, viewer_address
from lenstrain.scoretable import read_sky_scores
from tests.datasets import PAIR
from tests.lenstrain.probes.conftest import RUBIN, VIS
from tests.phase4c import stamp_blob, tiny_pixels, tiny_table, write_tree
from tests.scoretables import make_table
from tests.surveytree import tiny_survey, write_survey_tree


def write(path, table, kind, uri):
    facts = {"dataset": str(uri), "dataset_id": None, "source": {"kind": kind}}
    pq.write_table(table.replace_schema_metadata({"lenstrain": json.dumps(facts)}), path)
    return read_sky_scores(path)


def places(files, groups, rows):
    n = len(files)
    return pa.table(
        {
            "key": [f"k{i}" for i in range(n)],
            "logit": np.arange(n, dtype=np.float32),
            "source_file": files,
            "source_row_group": pa.array(groups, pa.int32()),
            "source_row": pa.array(rows, pa.int64()),
        }
    )


def test_stamps_of_a_tree_are_those_of_its_rows(tmp_path):
    pixels = tiny_pixels(24, seed=4)
    table = tiny_table(24, stamp_npz=[stamp_blob(p) for p in pixels], region_split="test")
    tree = write_tree(tmp_path / "t", table, files_per_split=1, row_group_rows=10)
    file = next(tree.rglob("*.parquet")).relative_to(tree).as_posix()
    scores = write(tmp_path / "s.parquet", places([file] * 3, [0, 2, 1], [3, 1, 9]), "tree", tree)
    reader = open_stamps(str(tree), scores)
    shown = reader.rgb(np.array([2, 0, 1]))
    np.testing.assert_array_equal(shown, lupton_rgb(pixels[[19, 3, 21]]))
    assert "Lupton" in reader.note


def test_stamps_of_another_survey_are_those_of_its_tree(tmp_path):
    survey = tiny_survey()
    tree = write_survey_tree(tmp_path / "t", survey, rows=12)
    (tmp_path / "s.toml").write_text(tomli_w.dumps(survey.to_mapping()))
    plan = plan_tree(tree, "train", tmp_path / "s.toml")
    spec = survey.normalization("asinh_survey", 1000.0)
    ((_, columns, stored, _),) = decode_parts(plan, [0], spec, workers=1)
    names = ("source_file", "source_row_group", "source_row")
    table = places(*(columns[name].to_pylist() for name in names))
    facts = {"source": {"kind": "tree", **plan.source}, "geometry": plan.geometry.to_dict()}
    table = table.replace_schema_metadata({"lenstrain": json.dumps(facts)})
    pq.write_table(table, tmp_path / "scores.parquet")
    reader = open_stamps(str(tree), read_sky_scores(tmp_path / "scores.parquet"))
    flux = denormalize(stored.astype(np.float32), spec, 0.0, 1.0)
    shown = reader.rgb(np.arange(len(flux))).astype(int)
    assert np.abs(shown - lupton_rgb(flux, plan.geometry)).max() <= 3


def test_stamps_of_cutouts_are_their_middles_and_stay_in_the_folder(tmp_path):
    pixels = tiny_pixels(2, seed=4)
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for name, stamp in zip("ab", pixels, strict=True):
        large = np.pad(stamp, ((0, 0), (3, 3), (3, 3)))
        np.savez(folder / f"{name}.npz", cutout=large)
    (tmp_path / "outside.npz").write_bytes((folder / "a.npz").read_bytes())
    (folder / "link.npz").symlink_to(tmp_path / "outside.npz")
    table = places(["b.npz", "../outside.npz", "link.npz"], [0] * 3, [0, 1, 2])
    scores = write(tmp_path / "s.parquet", table, "cutouts", folder)
    reader = open_stamps(str(folder), scores)
    np.testing.assert_array_equal(reader.rgb(np.array([0, 2])), lupton_rgb(pixels[::-1]))
    with pytest.raises(InputError, match=r"outside\.npz lies outside"):
        reader.rgb(np.array([1]))


def written(folder, spec, with_statistics=True, geometry=DECALS):
    """Flux, stored pixels, and a reader of the stamps of a dataset and of its scores."""
    flux = tiny_pixels(6, seed=4)
    if geometry != DECALS:
        rng = np.random.default_rng(4)
        flux = rng.normal(0, geometry.sky_noise[0], (6, *geometry.shape)).astype(np.float32)
    known = spec.by_stamp is not None
    median, scale = band_statistics(flux, spec)
    stored = normalize(flux, spec, median, scale) if known else flux.astype(np.float16)
    table = make_table(rows=6, regions=2)
    if with_statistics:
        names = geometry.band_columns("median", "scale")
        for name, column in zip(names, np.concatenate([median, scale], 1).T, strict=True):
            table = table.append_column(name, pa.array(column))
    manifest = write_dataset(
        folder / "ds", {"test": (stored, table)}, spec, shard_rows=4, geometry=geometry
    )
    facts = {"dataset_id": manifest.dataset_id, "split": "test"}
    scores = table.select(["key", "logit"]).replace_schema_metadata(
        {"lenstrain": json.dumps(facts)}
    )
    pq.write_table(scores, folder / "scores.parquet")
    reader = open_stamps(str(folder / "ds"), read_sky_scores(folder / "scores.parquet"))
    return flux, stored, reader


@pytest.mark.parametrize("mode", MODES)
def test_stamps_of_a_dataset_are_drawn_in_flux(tmp_path, mode):
    """Within a few of 255 steps of what was converted, where nothing was clipped."""
    spec = normalization_spec(mode, clip=1000.0)
    flux, _, reader = written(tmp_path, spec)
    shown = reader.rgb(np.arange(6)).astype(int)
    assert np.abs(shown - lupton_rgb(flux)).max() <= 3
    assert reader.note.startswith("Lupton RGB")


@pytest.mark.parametrize(
    ("geometry", "note"),
    [(VIS, "Lupton stretch of vis; "), (RUBIN, "Lupton RGB (y, r+i, u); "), (PAIR, "Lupton RGB (")],
)
def test_stamps_of_other_surveys_are_drawn_in_their_bands(tmp_path, geometry, note):
    spec = normalization_spec("asinh_survey", clip=1000.0, geometry=geometry)
    flux, _, reader = written(tmp_path, spec, geometry=geometry)
    shown = reader.rgb(np.arange(6)).astype(int)
    assert np.abs(shown - lupton_rgb(flux, geometry)).max() <= 3
    assert reader.note.startswith(note)
    assert f"Each stamp is {geometry.side_arcsec:.1f}″ wide." in reader.note


@pytest.mark.parametrize("geometry", [VIS, RUBIN, PAIR], ids=lambda g: g.survey)
def test_stamps_of_other_surveys_whose_flux_is_lost_are_stretched(tmp_path, geometry):
    spec = NormalizationSpec(mode="zscale", clip=10.0)
    _, _, reader = written(tmp_path, spec, with_statistics=False, geometry=geometry)
    shown = reader.rgb(np.arange(6))
    assert shown.shape == (6, geometry.side, geometry.side, 3)
    assert shown.std() > 10
    assert reader.note.startswith("Stored pixels (zscale)")


def test_large_stamps_are_embedded_smaller():
    small, large = (np.full((side, side, 3), 7, np.uint8) for side in (64, 256))
    sides = []
    for picture in (small, large):
        png = base64.b64decode(png_uri(picture).partition(",")[2])
        sides.append(len(image.imread(io.BytesIO(png))))
    assert sides == [64, 128]


@pytest.mark.parametrize("mode", [*MODES, "zscale"])
def test_stamps_whose_flux_is_lost_are_stretched(tmp_path, mode):
    """Without medians and scales only asinh, which has no need of them, is drawn in flux."""
    spec = NormalizationSpec(mode="zscale", clip=10.0)
    spec = spec if mode == "zscale" else normalization_spec(mode)
    _, stored, reader = written(tmp_path, spec, with_statistics=False)
    shown = reader.rgb(np.arange(6))
    same = np.array_equal(shown, _stretched(stored.astype(np.float32)))
    assert same == (mode != "asinh_survey")
    assert reader.note.startswith(f"Stored pixels ({mode})") == same


def test_scores_that_do_not_say_where_their_stamps_lie_are_refused(tmp_path):
    table = places(["a"], [0], [0]).drop_columns(["source_row"])
    scores = write(tmp_path / "s.parquet", table, "tree", tmp_path)
    with pytest.raises(ScoresError, match="has no column source_row"):
        open_stamps(str(tmp_path), scores).rgb(np.array([0]))


@pytest.mark.parametrize(
    ("geometry", "facts", "query"),
    [
        (DECALS, {"ra": 187.5, "dec": -10.25}, "?ra=187.500000&dec=-10.250000&"),
        (DECALS, {"ra": -0.5, "dec": 1.0}, "?ra=359.500000&dec=1.000000&"),
        (DECALS, {"ra": 187.5}, None),
        (PAIR, {"ra": 187.5, "dec": -10.25}, None),
    ],
)
def test_a_position_leads_to_the_viewer_of_its_survey(geometry, facts, query):
    address = viewer_address(geometry, facts)
    if query is None:
        assert address is None
    else:
        assert address.startswith(f"https://www.legacysurvey.org/viewer{query}")
