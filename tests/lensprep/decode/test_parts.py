"""Parts of a tree and of a folder of cutouts, decoded by processes of their own."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset.normalization import normalization_spec
from lensprep.decode import parts
from lensprep.decode.parts import (
    ORIGIN_COLUMNS,
    cutout_files,
    cutout_stamps,
    decode_parts,
    iter_tree_stamps,
    plan_cutouts,
    plan_tree,
    tree_stamps,
)
from lensprep.errors import InputError
from tests.lensprep.decode.test_cutoutsurveys import HSC, VIS
from tests.phase4c import tiny_table, write_tree

SPEC = normalization_spec("mad_stamp", 10.0)
STAMP = np.random.default_rng(4).normal(0, 0.01, (3, 64, 64)).astype(np.float32)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Six parts of eight rows."""
    monkeypatch.setattr(parts, "PART_ROWS", 8)
    tree = write_tree(tmp_path / "tree", tiny_table(48, region_split="test"), row_group_rows=4)
    return plan_tree(tree, "test")


def test_parts_come_whole_with_their_pixels_from_processes_of_their_own(plan):
    assert [part.rows for part in plan.parts] == [8] * 6
    seen = {}
    for part in decode_parts(plan, [4, 1], SPEC, workers=1):
        places = part.columns.select(["source_file", "source_row_group", "source_row"]).to_pylist()
        seen[part.number] = places, part.pixels.copy()
    assert sorted(seen) == [1, 4]
    here = plan.parts[4].decode(SPEC)
    np.testing.assert_array_equal(seen[4][1], here[1])
    raw = tree_stamps(plan.parts[0].source.uri, seen[4][0])
    medians = np.array([here[0][f"median_{band}"].to_numpy() for band in "grz"]).T
    np.testing.assert_array_equal(np.median(raw, axis=(2, 3)), medians)


def test_many_rows_of_a_tree_are_read_row_group_by_row_group(plan):
    columns = [part.decode(SPEC)[0].select(ORIGIN_COLUMNS) for part in plan.parts]
    rows = pa.concat_tables(columns)
    mixed = np.random.default_rng(1).permutation([*range(len(rows)), 3, 3])
    asked = rows.take(pa.array(mixed))
    uri, seen, groups = plan.parts[0].source.uri, [], []
    for numbers, pixels in iter_tree_stamps(uri, asked):
        some = asked.take(pa.array(numbers)).to_pylist()
        np.testing.assert_array_equal(pixels, tree_stamps(uri, some))
        groups.append({(row["source_file"], row["source_row_group"]) for row in some})
        seen += numbers.tolist()
    assert sorted(seen) == list(range(len(mixed)))
    assert [len(group) for group in groups] == [1] * 12
    with pytest.raises(InputError, match="not known where"):
        next(iter_tree_stamps(uri, asked.set_column(2, "source_row", pa.nulls(50, pa.int64()))))
    for name, value in (("source_row", 4), ("source_row", -1), ("source_row_group", 99)):
        wrong = rows.slice(0, 1).to_pylist()[0] | {name: value}
        with pytest.raises(InputError, match="has changed: row group"):
            tree_stamps(uri, [wrong])


def test_a_slow_reader_fills_no_disk(plan, tmp_path, monkeypatch):
    """At most what the processes are handed lies there: one part in work and one that waits."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    most = 0
    for _ in decode_parts(plan, range(6), SPEC, workers=1):
        time.sleep(0.1)
        most = max(most, len(list(tmp_path.glob("lensprep-parts-*/*.npy"))))
    assert 1 <= most <= 3
    assert not list(tmp_path.glob("lensprep-parts-*"))


def children():
    """Decoding processes that this one started, whichever of its threads did."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread, or a process, that has just ended
            for pid in (thread / "children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def test_what_a_killed_process_had_in_hand_is_decoded_again(plan):
    before, numbers = children(), []
    for part in decode_parts(plan, range(6), SPEC, workers=1):
        if not numbers:
            (worker,) = children() - before
            os.kill(worker, signal.SIGKILL)
        numbers.append(part.number)
    assert sorted(numbers) == list(range(6))


def test_whoever_takes_no_more_leaves_neither_process_nor_file(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before, threads = children(), set(threading.enumerate())
    taken = decode_parts(plan, range(6), SPEC, workers=2)
    next(taken)
    own = set(threading.enumerate()) - threads
    assert len(children() - before) == 2
    taken.close()
    assert not children() - before
    assert not list(tmp_path.glob("lensprep-parts-*"))
    assert own
    assert not any(thread.is_alive() for thread in own)


@pytest.fixture
def folder(tmp_path):
    """A cutout, another in a subfolder, and a third behind a link that leads outside."""
    root = tmp_path / "cutouts"
    for path in (root / "a.npz", root / "sub" / "b.npz", tmp_path / "elsewhere" / "c.npz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, cutout=STAMP, ra=10.0, dec=-5.0)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    return root


def test_a_cutout_that_goes_is_the_matter_of_its_row(folder, tmp_path):
    (folder / "gone.npz").symlink_to(folder / "nowhere.npz")
    (tmp_path / "c.csv").write_text("file,ra,dec\ngone.npz,1,2\na.npz,1,2\n")
    (part,) = plan_cutouts(folder, tmp_path / "c.csv").parts
    columns, pixels, rejects = part.decode(SPEC)
    assert part.rows == 2
    assert columns["source_file"].to_pylist() == ["a.npz"]
    assert pixels.shape == (1, 3, 64, 64)
    (reject,) = rejects.to_pylist()
    assert (reject["source_row"], reject["reason"]) == (0, "unreadable")
    assert reject["detail"].startswith("FileNotFoundError")


def test_rows_of_a_catalogue_go_to_a_process_without_the_other_rows(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 3)
    rows = "".join(f"a.npz,1,2,{number}\n" for number in range(8))
    (tmp_path / "c.csv").write_text(f"file,ra,dec,key\n{rows}")
    plan = plan_cutouts(folder, tmp_path / "c.csv")
    assert [part.table["key"].to_pylist() for part in plan.parts] == [
        ["0", "1", "2"], ["3", "4", "5"], ["6", "7"],
    ]  # fmt: skip
    assert plan.parts[2].decode(SPEC)[0]["source_row"].to_pylist() == [6, 7]
    assert plan.parts[0].table.get_total_buffer_size() < 400


def test_stamps_of_links_are_shown_and_names_that_leave_the_folder_are_refused(folder):
    (folder / "link.npz").symlink_to(folder.parent / "elsewhere" / "c.npz")
    stamps = cutout_stamps(folder, ["link.npz", "linked/c.npz", "sub/b.npz"])
    np.testing.assert_array_equal(stamps, np.stack([STAMP] * 3))
    for name in ("../elsewhere/c.npz", str(folder / "a.npz")):
        with pytest.raises(InputError, match="lies outside"):
            cutout_stamps(folder, [name])
    for name in (None, "gone.npz"):
        with pytest.raises(InputError, match=r"can no longer be read \(unreadable: FileNotFound"):
            cutout_stamps(folder, [name])


@pytest.mark.parametrize("geometry", [HSC, VIS], ids=["hsc", "euclid_vis"])
def test_cutouts_of_another_survey_keep_its_bands_and_side(tmp_path, geometry):
    raw = np.random.default_rng(1).normal(0, 0.01, (3, *geometry.shape)).astype(np.float32)
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c" / "stack.npy", raw[:2])
    for band, plane in zip(geometry.bands, raw[2], strict=True):
        np.save(tmp_path / "c" / f"x_{band}.npy", plane)
    rows = (
        "file,index,ra,dec\nstack.npy,1,1,2\nstack.npy,0,1,2\nx_{band}.npy,,3,4\nstack.npy,2,1,2\n"
    )
    (tmp_path / "c.csv").write_text(rows)
    plan = plan_cutouts(tmp_path / "c", tmp_path / "c.csv", geometry=geometry)
    ((_, columns, pixels, rejects),) = decode_parts(plan, [0], SPEC, workers=1)
    assert pixels.shape == (3, *geometry.shape)
    names = columns["source_file"].to_pylist()
    assert names[:2] == ["stack.npy[1]", "stack.npy[0]"]
    assert rejects["reason"].to_pylist() == ["wrong_shape"]
    np.testing.assert_array_equal(cutout_stamps(tmp_path / "c", names, geometry), raw[[1, 0, 2]])
    assert cutout_files(names, geometry) == {path.name for path in (tmp_path / "c").iterdir()}
    medians = [columns[name].to_pylist() for name in geometry.band_columns("median")]
    expected = np.median(raw[[1, 0, 2]], axis=(2, 3)).T
    np.testing.assert_allclose(medians, expected, rtol=0, atol=1e-6)
