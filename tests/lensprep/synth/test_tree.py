"""A tree on disk: the contract of Phase 4c, one sky, the same bytes from any number of workers."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.decode.stampnpz import decode_batch
from lensprep.errors import BudgetError, ProjectError, StorageError
from lensprep.source.contract import label_rows
from lensprep.source.survey import COLUMNS
from lensprep.source.tree import Source
from lensprep.synth import synthesize
from lensprep.synth.survey import brick_at

ROWS = 160


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "tree"
    seen = []
    summary = synthesize(
        out, rows=ROWS, seed=7, workers=1, progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (ROWS, ROWS)
    assert summary["priors"] == "upstream"
    return out, summary


@pytest.fixture(scope="module")
def table(built):
    source = Source.open(built[0])
    return pa.concat_tables(
        source.read_row_group(file, group)
        for file in source.files
        for group in range(len(file.row_groups))
    )


def numbers(table, name):
    return table[name].to_numpy(zero_copy_only=False)


def test_layout_is_that_of_spark(built):
    out, summary = built
    stamps = out / "stamps" / "train_stamp64_bandsgrz_gridgrid_small"
    assert (stamps / "_SUCCESS").read_bytes() == b""
    for split in ("train", "val", "test"):
        folder = stamps / f"region_split={split}"
        parts = sorted(folder.glob("part-*.c000.snappy.parquet"))
        assert len(parts) >= 4
        assert {path.name for path in folder.glob(".*.crc")} == {f".{p.name}.crc" for p in parts}
        footers = [pq.ParquetFile(path) for path in parts]
        assert min(footer.num_row_groups for footer in footers) >= 2
        assert all("region_split" not in footer.schema_arrow.names for footer in footers)
        assert footers[0].metadata.row_group(0).column(0).compression == "SNAPPY"
        rows = sum(footer.metadata.num_rows for footer in footers)
        assert rows == summary["splits"][split]["rows"]
    assert not list(out.parent.glob(".*"))


def test_hidden_checksums_are_right(built):
    path = next(built[0].rglob("part-00000*.parquet"))
    crc = path.with_name(f".{path.name}.crc").read_bytes()
    assert crc[:8] == b"crc\0" + struct.pack(">I", 512)
    data = path.read_bytes()
    chunks = [data[i : i + 512] for i in range(0, len(data), 512)]
    assert list(struct.unpack(f">{len(chunks)}I", crc[8:])) == [zlib.crc32(c) for c in chunks]


def test_files_have_the_types_of_the_contract(built):
    schema = pq.ParquetFile(next(built[0].rglob("part-*.parquet"))).schema_arrow
    wanted = [c for c in COLUMNS if c.name != "region_split"]
    assert schema.names == [c.name for c in wanted]
    for column in wanted:
        field = schema.field(column.name)
        assert (field.type, field.nullable) == (column.type, column.nullable)


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_null_rules_hold(table, column):
    control = numbers(table, "is_control") == 1
    null = table[column.name].is_null().to_numpy()
    assert not null[~control].any()
    if column.controls == "null":
        assert null[control].all()
        return
    assert not null.any()
    if column.controls == "zero":
        assert (numbers(table, column.name)[control] == 0).all()
    if column.minimum is not None:
        assert numbers(table, column.name).min() >= column.minimum
    if column.maximum is not None:
        assert numbers(table, column.name).max() <= column.maximum


def test_labels_are_consistent_and_balanced(built, table):
    labels = label_rows(table)
    assert set(labels.reason) == {""}
    assert labels.label.mean() == pytest.approx(0.5, abs=0.12)
    models = np.array(table["lens_model"].to_pylist())
    assert {*models[labels.label == 1]} == {"SIE"}  # as in the train tier of Phase 4c
    for split, counts in built[1]["splits"].items():
        mine = np.array(table["region_split"].to_pylist()) == split
        assert counts["injections"] == labels.label[mine].sum() > 0


def test_source_colours_of_controls_are_not_zeroed(table):
    for name in ("src_gr", "src_rz"):
        values = numbers(table, name)
        assert (values != 0).all()
        assert -0.5 <= values.min() <= values.max() <= 1.5


def test_injected_columns_agree_with_each_other(table):
    lens = table.filter(pa.compute.equal(table["is_control"], 0))
    below_one = numbers(lens, "magnification") < 1
    assert (numbers(lens, "physics_valid") == ~below_one).all()
    warned = np.where(below_one, "magnification_below_one", "")
    assert lens["physics_warnings"].to_pylist() == warned.tolist()
    assert numbers(lens, "arc_snr").min() > 0
    assert numbers(lens, "psf_fwhm_used_r") == pytest.approx(numbers(lens, "psfsize_r"))
    theta_e, radius = numbers(lens, "theta_e_arcsec"), numbers(lens, "expected_arc_radius")
    # theta_e is that of the minor axis: the major one is up to three times as long.
    assert ((radius / theta_e > 0.5) & (radius / theta_e < 3)).all()
    offset = np.hypot(numbers(lens, "src_x_arcsec"), numbers(lens, "src_y_arcsec"))
    assert (offset <= 0.8 * theta_e).all()


def test_blobs_are_those_of_savez_compressed(table):
    sizes = [len(blob.as_py()) for blob in table["stamp_npz"]]
    assert 42_000 < min(sizes) <= max(sizes) < 48_000
    with np.load(io.BytesIO(table["stamp_npz"][0].as_py()), allow_pickle=False) as stamp:
        assert stamp.files == ["image_g", "image_r", "image_z"]
        assert {(a.shape, a.dtype.str) for a in stamp.values()} == {((64, 64), "<f4")}
    pixels = np.empty((table.num_rows, 3, 64, 64), np.float32)
    assert set(decode_batch(table["stamp_npz"], pixels)) == {None}
    assert np.isfinite(pixels).all()


def test_noise_of_stamps_has_the_declared_depth(table):
    """Depth is 5 sigma of a point source; half the pixels of a stamp see nothing but sky."""
    pixels = np.empty((table.num_rows, 3, 64, 64), np.float32)
    decode_batch(table["stamp_npz"], pixels)
    red = pixels[:, 1]
    sigma = 1.4826 * np.median(np.abs(red - np.median(red, (1, 2), keepdims=True)), (1, 2))
    depth_flux = 10 ** (0.4 * (22.5 - numbers(table, "psfdepth_r"))) / 5
    noise_pixels = (depth_flux / sigma) ** 2
    # A Gaussian has 4 pi sigma^2 = 2.27 FWHM^2 noise-equivalent pixels, the wings of a Moffat
    # profile (beta 2.8 to 4) add up to 40 %; faint sources raise sigma in a few stamps.
    gaussian = 2.266 * (numbers(table, "psfsize_r") / 0.262) ** 2
    assert 1.0 < np.median(noise_pixels / gaussian) < 1.4


def test_rows_are_unique_and_lie_in_their_bricks(table):
    assert len(set(table["task_id"].to_pylist())) == table.num_rows
    assert all(len(task_id) == 64 for task_id in table["task_id"].to_pylist())
    places = zip(table["ra"].to_pylist(), table["dec"].to_pylist(), strict=True)
    assert [brick_at(ra, dec)[0] for ra, dec in places] == table["brickname"].to_pylist()


def test_splits_share_no_sky(table):
    split = np.array(table["region_split"].to_pylist())
    region = numbers(table, "region_id")
    assert all(len(set(split[region == r])) == 1 for r in set(region))
    ra, dec = np.radians(numbers(table, "ra")), np.radians(numbers(table, "dec"))
    xyz = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    apart = np.degrees(np.arccos(np.clip(xyz @ xyz.T, -1, 1))) * 3600
    assert apart[split[:, None] != split].min() > 100 * 23.7


def test_workers_do_not_change_a_byte(built, tmp_path):
    other = tmp_path / "other"
    synthesize(other, rows=ROWS, seed=7, workers=2)
    names = [sorted(p.relative_to(d) for p in d.rglob("*")) for d in (built[0], other)]
    assert names[0] == names[1]
    for name in names[0]:
        if (other / name).is_file():
            assert (other / name).read_bytes() == (built[0] / name).read_bytes()


def test_another_seed_is_another_sky(built, tmp_path, table):
    synthesize(tmp_path / "other", rows=30, seed=8, workers=1, regions=5)
    source = Source.open(tmp_path / "other")
    assert source.rows == 30
    file = source.files[0]
    ids = source.read_row_group(file, 0, ["task_id"])["task_id"].to_pylist()
    assert not {*ids} & {*table["task_id"].to_pylist()}


def test_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(StorageError, match="is not empty"):
        synthesize(tmp_path, rows=10, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(done, rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "tree", rows=30, seed=1, workers=1, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_tree_larger_than_the_disk_is_refused_before_it_is_begun(tmp_path):
    with pytest.raises(BudgetError, match="Ask for fewer rows"):
        synthesize(tmp_path / "tree", rows=10**12, seed=1)
    assert not list(tmp_path.iterdir())


def test_missing_lenstronomy_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.synth.tree.find_spec", lambda name: None)
    with pytest.raises(ProjectError, match=r"pip install '\.\[synth\]'"):
        synthesize(tmp_path / "tree", rows=10, seed=1)
