"""Conversion under fire: what kills its workers, and a network that alters what it brings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lensprep.checks.check import check
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset.normalization import normalization_spec
from lensprep.decode import rowgroup
from lensprep.decode.parts import TreePart
from lensprep.engine import make_engine
from lensprep.engine.trial import find_fatal
from lensprep.errors import InputError, ProjectError
from lensprep.inspection.verify import verify
from lensprep.source.tree import Source
from lensprep.store.arrow import remote_filesystem
from lensprep.transfer import download
from tests.faultproxy import ALWAYS, DRAWN, Fault
from tests.phase4c import tiny_table, write_tree

ROOT = Path(__file__).parents[2]
CONFIG = ConvertConfig(shard_rows=20, max_reject_rate=1.0)
SKIP = ConvertConfig(shard_rows=20, max_reject_rate=1.0, skip_bad_files=True)


@pytest.fixture(scope="module")
def table():
    return tiny_table(80)


@pytest.fixture(scope="module")
def tree(table, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=1, row_group_rows=8)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """The same conversion where nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "ds"
    convert(str(tree), str(out), CONFIG, workers=1)
    return out


@pytest.fixture(autouse=True)
def many_tasks(monkeypatch):
    """Two row groups to a task."""
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 16)


def contents(root):
    """Bytes of every file; of the manifest all but what the source is and what was read twice."""
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.*")}
    manifest = json.loads(files["manifest.json"])
    del manifest["source"], manifest["account"]["read_again"]
    rejects = pq.read_table(root / "rejects.parquet").to_pylist()  # its row groups are of the tasks
    return {**files, "manifest.json": manifest, "rejects.parquet": rejects}


# ------------------------------------------------------------------------- what kills a worker

HOOK = f"""
import hashlib, os, resource, signal
import {rowgroup.__name__} as rowgroup

decode, folder = rowgroup.{rowgroup.decode_batch.__name__}, os.environ["DEADLY_FOLDER"]

def deadly(blobs, out, bands):
    for blob in blobs.to_pylist():
        if hashlib.sha256(blob).hexdigest() == os.environ["DEADLY_BLOB"]:
            number = len(os.listdir(folder))
            if number < int(os.environ["DEADLY_TIMES"]):
                open(os.path.join(folder, str(number)), "w").close()
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.kill(os.getpid(), getattr(signal, os.environ["DEADLY_SIGNAL"]))
    return decode(blobs, out, bands)

rowgroup.{rowgroup.decode_batch.__name__} = deadly
"""
"""In every process that starts with it, decoding one blob ends the process."""


@pytest.fixture
def deadly(table, tmp_path, monkeypatch):
    """Have processes that start from now on die of a stamp: of the fourth row group of train."""
    train = table.filter(np.array(table["region_split"].to_pylist()) == "train")

    def make(times=1000, name="SIGSEGV"):
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
        (tmp_path / "deaths").mkdir()
        blob = train["stamp_npz"][3 * 8 + 5].as_py()
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}{os.pathsep}{ROOT}")
        monkeypatch.setenv("DEADLY_BLOB", hashlib.sha256(blob).hexdigest())
        monkeypatch.setenv("DEADLY_FOLDER", str(tmp_path / "deaths"))
        monkeypatch.setenv("DEADLY_TIMES", str(times))
        monkeypatch.setenv("DEADLY_SIGNAL", name)
        return lambda: len(list((tmp_path / "deaths").iterdir()))

    return make


def require_left_out(root, report):
    """Every row but those of the row group got in, and these are accounted for."""
    assert report["rejected"] == {"crashed": 8}
    assert report["accepted"] + 8 == report["input_rows"] == 80
    rows = pq.read_table(root / "rejects.parquet").to_pylist()
    assert [(r["source_row_group"], r["source_row"]) for r in rows] == [(3, n) for n in range(8)]
    assert {r["reason"] for r in rows} == {"crashed"}
    (file,) = {r["source_file"] for r in rows}
    assert file.startswith("region_split=train/")
    assert verify(str(root), workers=1)["ok"]


@pytest.mark.faults
@pytest.mark.parametrize("name", ["local", "dask", "spark"])
def test_a_row_group_that_kills_workers_is_named_and_can_be_left_out(name, tree, deadly, tmp_path):
    if name == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    deaths = deadly()
    with make_engine(name, workers=2) as engine:
        with pytest.raises(InputError, match=r"train/part-\S+, row group 3 kills .*--skip-bad"):
            convert(str(tree), str(tmp_path / "ds"), CONFIG, engine=engine)
        assert deaths() == 2
        report = convert(str(tree), str(tmp_path / "left"), SKIP, engine=engine)
        assert deaths() == 4
    require_left_out(tmp_path / "left", report)


def command(tree, out, *options):
    arguments = [tree, out, "--shard-rows", 20, "--max-reject-rate", 1, "--workers", 1, *options]
    program = (
        "from lensprep.convert import runs; runs.RUN_ROWS = 16\n"
        "from lensprep.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "convert", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_resume_gets_past_what_killed_the_command(tree, deadly, tmp_path):
    deaths, out = deadly(), tmp_path / "ds"
    assert command(tree, out).returncode == -signal.SIGSEGV
    named = command(tree, out, "--resume")
    assert named.returncode == 1
    assert "row group 3 kills the process" in named.stderr
    assert deaths() == 2
    done = command(tree, out, "--resume", "--skip-bad-files", "--json")
    assert done.returncode == 0, done.stderr
    require_left_out(out, json.loads(done.stdout))


@pytest.mark.faults
def test_a_kill_from_outside_costs_no_row(tree, whole, deadly, tmp_path):
    """As of an OOM killer that took the wrong one, or of a person."""
    deaths, out = deadly(times=1, name="SIGKILL"), tmp_path / "ds"
    assert command(tree, out, "--skip-bad-files").returncode == -signal.SIGKILL
    done = command(tree, out, "--resume", "--skip-bad-files")
    assert done.returncode == 0, done.stderr
    assert deaths() == 1
    left, right = contents(out), contents(whole)
    assert left.pop("manifest.json")["config"]["skip_bad_files"]
    assert not right.pop("manifest.json")["config"]["skip_bad_files"]
    assert left == right


@pytest.mark.faults
def test_a_worker_that_is_killed_once_stops_nothing(tree, whole, deadly, tmp_path, caplog):
    deaths = deadly(times=1, name="SIGKILL")
    convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=2)
    assert deaths() == 1
    assert "killed (SIGKILL: out of memory?) while it did region_split=train/part-" in caplog.text
    assert "row groups 3 to 4" in caplog.text
    assert contents(tmp_path / "ds") == contents(whole)


def die_of(some, item):
    if item in some:
        os.kill(os.getpid(), signal.SIGKILL)
    raise InputError("is dropped: what does not kill is not to blame")


@pytest.mark.parametrize(
    "some", [[5], *(pytest.param(some, marks=pytest.mark.faults) for some in ([], [0], [1, 2, 4]))]
)
def test_what_kills_a_process_that_did_nothing_else_is_found(some, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert find_fatal(partial(die_of, some), range(6)) == some


def end_by_request(item):
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_process_that_is_asked_to_end_blames_nothing():
    assert find_fatal(end_by_request, range(3)) == []


# ------------------------------------------------------------------- what alters what is read


@pytest.fixture(scope="module")
def checked(table, tmp_path_factory):
    """The tree as Spark writes it: with a checksum in every page."""
    root = tmp_path_factory.mktemp("checked")
    return write_tree(root, table, files_per_split=1, row_group_rows=8, page_checksums=True)


def put(tree, s3):
    """Copy a tree into the store."""
    for path in tree.rglob("*.parquet"):
        s3.store().write(path.relative_to(tree).as_posix(), path.read_bytes())


def convert_through(proxy, s3, out, config=CONFIG):
    return convert(s3.uri, str(out), config, workers=1, options=s3.options(endpoint_url=proxy.url))


PAGES = pytest.mark.parametrize(
    "pages", ["bare", pytest.param("checked", marks=pytest.mark.faults)]
)


@PAGES
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.faults) for n in range(2, 12))]
)
def test_altered_cut_and_failed_answers_change_no_byte(
    pages, seed, tree, checked, whole, s3, proxy, tmp_path
):
    put(checked if pages == "checked" else tree, s3)
    proxy.add(
        Fault("alter", b"GET ", times=ALWAYS, share=0.1, seed=seed, after=DRAWN),
        Fault("cut", b"GET ", times=ALWAYS, share=0.05, seed=seed, after=DRAWN),
        Fault("answer", b"GET ", times=ALWAYS, share=0.05, seed=seed),
    )
    report = convert_through(proxy, s3, tmp_path / "ds")
    assert proxy.happened["alter"] >= 5
    assert proxy.happened["cut"] + proxy.happened["answer"] >= 2
    assert report["rejected"] == {}
    assert contents(tmp_path / "ds") == contents(whole)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.faults) for n in range(2, 12))]
)
def test_altered_answers_change_no_byte_of_a_dataset_in_the_store(
    seed, tree, whole, s3, proxy, tmp_path
):
    proxy.add(Fault("alter", b"GET ", times=ALWAYS, share=0.1, seed=seed, after=DRAWN))
    options = s3.options(endpoint_url=proxy.url)
    report = convert(str(tree), s3.uri, CONFIG, workers=1, options=options)
    assert proxy.happened["alter"] >= 3
    assert report["read_again"] == 0
    proxy.clear()
    download(s3.uri, str(tmp_path / "ds"), s3.options())
    assert contents(tmp_path / "ds") == contents(whole)


def place_of_stamp(tree):
    """Byte of the first file in the middle of its tenth stamp, which the second task reads."""
    path = sorted(tree.rglob("*.parquet"))[0]
    blob = pq.read_table(path, columns=["stamp_npz"])["stamp_npz"][9].as_py()
    return path.read_bytes().index(blob[10_000:11_000])


@pytest.mark.parametrize("pages", ["bare", "checked"])
@pytest.mark.parametrize("times", [2, pytest.param(3, marks=pytest.mark.faults)])
def test_a_stamp_that_was_altered_is_read_again(
    pages, times, tree, checked, whole, s3, proxy, tmp_path
):
    source = checked if pages == "checked" else tree
    put(source, s3)
    place = place_of_stamp(source)
    # The first block that is altered is read for the row group before, where it does no harm; with
    # three the answer to the second reading is altered too.
    proxy.add(Fault("alter", b"GET ", holding=b"bytes=0-", after=place, times=times))
    report = convert_through(proxy, s3, tmp_path / "ds")
    assert proxy.happened["alter"] == times
    assert report["read_again"] == 8
    assert report["rejected"] == {}
    assert contents(tmp_path / "ds") == contents(whole)


def test_a_check_and_the_scoring_of_a_tree_read_it_again_too(tree, s3, proxy, tmp_path):
    put(tree, s3)
    s3.store().write("_SUCCESS", b"")
    options, block = s3.options(endpoint_url=proxy.url), b"bytes=0-"
    altered = Fault("alter", b"GET ", holding=block, after=place_of_stamp(tree), times=2)
    proxy.add(altered)
    report = check(s3.uri, pixels=True, workers=1, options=options)
    assert altered.times == 0
    local = check(str(tree), pixels=True, workers=1)
    assert [f.measured for f in report.findings] == [f.measured for f in local.findings]

    source = Source.open(s3.uri, filesystem=remote_filesystem(s3.uri, options))
    file = source.files[0]
    part = TreePart(source, ((file, 1),), str(file.split))
    altered.times = 2
    rows, pixels, rejects = part.decode(normalization_spec("mad_stamp", 10.0))
    assert altered.times == 0
    assert (rows.num_rows, len(pixels), rejects.num_rows) == (8, 8, 0)


@pytest.mark.parametrize("skip", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_what_is_damaged_in_the_store_is_rejected_after_two_readings(
    skip, table, s3, proxy, tmp_path
):
    blobs = table["stamp_npz"].to_pylist()
    blobs[9] = blobs[9][:5000] + bytes([blobs[9][5000] ^ 1]) + blobs[9][5001:]
    damaged = write_tree(
        tmp_path / "src", tiny_table(80, stamp_npz=blobs), files_per_split=1, row_group_rows=8
    )
    put(damaged, s3)
    report = convert_through(proxy, s3, tmp_path / "ds", SKIP if skip else CONFIG)
    assert report["read_again"] == 8
    assert list(report["rejected"].values()) == [1]
    convert(str(damaged), str(tmp_path / "local"), SKIP if skip else CONFIG, workers=1)
    assert contents(tmp_path / "ds") == contents(tmp_path / "local")


def test_a_corrupt_page_in_the_store_is_an_error_after_two_readings(checked, s3, proxy, tmp_path):
    tree = tmp_path / "src"
    shutil.copytree(checked, tree)
    path, place = sorted(tree.rglob("*.parquet"))[0], place_of_stamp(tree)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    put(tree, s3)
    with pytest.raises(InputError, match=r"row group 1 cannot be read: .*checksum.*--skip-bad"):
        convert_through(proxy, s3, tmp_path / "ds")
    report = convert_through(proxy, s3, tmp_path / "left", SKIP)
    assert report["rejected"] == {"unreadable": 8}
    with pytest.raises(InputError, match="checksum"):
        convert(str(tree), str(tmp_path / "local"), CONFIG, workers=1)


def test_a_network_that_alters_every_answer_is_refused(tree, s3, proxy, tmp_path):
    put(tree, s3)
    folder = s3.uri.removeprefix("s3:/").encode()
    proxy.add(Fault("alter", b"GET " + folder + b"/region", times=ALWAYS, after=DRAWN))
    with pytest.raises(ProjectError, match=r"the network alters what it carries"):
        convert_through(proxy, s3, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()
