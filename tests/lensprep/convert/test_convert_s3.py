"""Conversion into an object store: the same bytes, little local disk, whatever breaks."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.cli import main
from lensprep.convert.conversion import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.errors import (
    BudgetError,
    ChangedError,
    DatasetError,
    InputError,
    ProjectError,
    StorageError,
)
from lensprep.inspection.verify import verify
from lensprep.source.tree import Source
from lensprep.store.arrow import remote_filesystem
from lensprep.store.s3 import S3Store
from tests.faultproxy import Fault, FaultProxy
from tests.phase4c import tiny_table, tiny_tree, write_tree
from tests.s3server import SECRET_KEY, Place, S3Server, set_environment

CONFIG = ConvertConfig(shard_rows=20, max_reject_rate=1.0)


@pytest.fixture(scope="module")
def table():
    blobs = tiny_table(120)["stamp_npz"].to_pylist()
    blobs[5] = b""
    return tiny_table(120, stamp_npz=blobs)


@pytest.fixture(scope="module")
def tree(table, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=2, row_group_rows=8)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """The same conversion on a local disk."""
    out = tmp_path_factory.mktemp("whole") / "ds"
    with pytest.MonkeyPatch.context() as patch:
        small_runs(patch)
        convert(str(tree), str(out), CONFIG, workers=1)
    return out


def small_runs(patch):
    """Many runs from few rows."""
    patch.setattr("lensprep.convert.rounds.RUN_ROWS", 16)
    patch.setattr("lensprep.convert.conversion.RUN_ROWS", 16)
    patch.setattr("lensprep.convert.spill_remote._INDEX_ROWS", 4)


@pytest.fixture(autouse=True)
def patched(monkeypatch, tmp_path):
    """Small runs; local files for a moment go where a test can see them."""
    small_runs(monkeypatch)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def proxy(s3):
    with FaultProxy(s3.server.ports["s3"]) as running:
        yield running


def contents(root):
    """Name and bytes of every file of a folder, or of a place."""
    if isinstance(root, Place):
        store = root.store()
        return {entry.name: bytes(store.read(entry.name)) for entry in store.entries()}
    files = [path for path in Path(root).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def without_source(files):
    """Without the differences: the manifest names the source, and what was read from it twice."""
    manifest = json.loads(files["manifest.json"])
    del manifest["source"]["uri"], manifest["account"]["read_again"]
    return {**files, "manifest.json": manifest}


def without_groups(files):
    """`rejects.parquet` as rows: its row groups are those of the tasks."""
    rows = pq.read_table(pa.BufferReader(files["rejects.parquet"])).to_pylist()
    return {**files, "rejects.parquet": rows}


def unfinished(place):
    store = place.store()
    answer = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def put_tree(store, tree):
    for path in tree.rglob("*.parquet"):
        store.write(path.relative_to(tree).as_posix(), path.read_bytes())


def interrupt(*_):
    raise KeyboardInterrupt


def begin_and_stop(tree, s3, phase="shards", after=2, **arguments):
    """A conversion that is interrupted in a round, after some of its tasks."""
    seen = []

    def stop(name, done, total):
        seen.append(name)
        if seen.count(phase) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(
            str(tree), s3.uri, CONFIG, workers=1, progress=stop, options=s3.options(), **arguments
        )


# ---------------------------------------------------------------- the same bytes


def test_it_is_the_dataset_that_a_local_conversion_makes(tree, whole, s3, tmp_path):
    report = convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    assert report["accepted"] == 119
    assert report["rejected"] == {"empty_blob": 1}
    assert contents(s3) == contents(whole)  # manifest and rejects.parquet too; no work is left
    assert verify(s3.uri, against=str(tree), sample=None, options=s3.options(), workers=1)["ok"]
    assert unfinished(s3) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_tree_in_the_store_is_read_as_one_on_a_disk(tree, table, s3):
    """Columns in folders, files that a job left, and the first rows that are rejected."""
    store = S3Store(f"{s3.uri}-source", s3.options())
    for psf_bin in range(4):
        part = table.filter(pc.equal(table["psf_bin"], psf_bin)).drop_columns(["psf_bin"])
        sink = io.BytesIO()
        pq.write_table(part, sink, row_group_size=8)
        store.write(f"psf_bin={psf_bin}/part-0.parquet", sink.getvalue())
    source = Source.open(store.uri, filesystem=remote_filesystem(s3.uri, s3.options()))
    found = [t for file in source.files for t in source.iter_file(file, ["task_id", "psf_bin"])]
    expected = table.select(["task_id", "psf_bin"]).sort_by("task_id")
    assert pa.concat_tables(found).sort_by("task_id").equals(expected)
    strict = ConvertConfig(max_reject_rate=0.0)
    with pytest.raises(BudgetError, match=r"The first: psf_bin=\d/part-0\.parquet, .*: empty_blob"):
        convert(store.uri, s3.uri, strict, workers=1, options=s3.options())
    convert(store.uri, s3.uri, CONFIG, workers=1, options=s3.options())
    (fault,) = verify(s3.uri, against=str(tree), options=s3.options(), workers=1)["faults"]
    assert f"names another source than {tree}: {store.uri} with 4 files, 120 rows" in fault["what"]
    store.write("_temporary/0/task_2/psf_bin=3/part-0.parquet", b"")
    with pytest.raises(InputError, match="holds _temporary: the job that writes it is running"):
        convert(store.uri, s3.uri, CONFIG, workers=1, resume=True, options=s3.options())


def test_two_workers_from_a_source_in_the_store(tree, whole, s3):
    source = S3Store(f"{s3.uri}-source", s3.options())
    put_tree(source, tree)
    report = convert(source.uri, s3.uri, CONFIG, workers=2, options=s3.options())
    assert report["dataset_id"] == Dataset.open(whole).dataset_id
    assert report["read_again"] == 8  # the row group with the empty blob
    assert without_source(contents(s3)) == without_source(contents(whole))


@pytest.mark.parametrize("kind", ["local work", "remote work of a local dataset"])
def test_the_work_may_lie_elsewhere(tree, whole, s3, tmp_path, kind):
    work = str(tmp_path / "work") if kind == "local work" else f"{s3.uri}-work"
    place = s3 if kind == "local work" else tmp_path / "ds"
    uri = s3.uri if kind == "local work" else str(place)
    seen = []

    def look(phase, done, total):
        if phase == "decode" and done == total:
            seen.extend(f.name for f in tmp_path.rglob("*.dat"))
            seen.extend(e.name for e in S3Store(f"{s3.uri}-work", s3.options()).entries())

    convert(str(tree), uri, CONFIG, workers=1, work=work, progress=look, options=s3.options())
    runs = [name for name in seen if name.endswith((".dat", ".run"))]
    assert len(runs) >= 8
    assert contents(place) == contents(whole)
    assert contents(tmp_path / "work") == {}
    assert S3Store(f"{s3.uri}-work", s3.options()).entries() == []


def test_large_shards_and_runs_go_in_parts(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.convert.conversion.RUN_ROWS", 4096)
    monkeypatch.setattr("lensprep.convert.rounds.RUN_ROWS", 4096)
    tree = tiny_tree(tmp_path / "src", 600, region_split="train", hive=False)
    config = ConvertConfig(shard_rows=600)
    convert(str(tree), s3.uri, config, workers=1, options=s3.options())
    store = s3.store()
    answer = store.client.head_object(Bucket="bucket", Key=store.key("train/train-000000.tar"))
    assert answer["ETag"].endswith('-4"')
    assert unfinished(s3) == []
    convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    assert contents(s3) == contents(tmp_path / "ds")


# ---------------------------------------------------------------- local disk


class Watch:
    """The most bytes that lay in a folder at once."""

    def __init__(self, folder):
        self.folder, self.most = folder, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _run(self):
        while not self._done.wait(0.002):
            total = 0
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    try:
                        total += os.stat(os.path.join(folder, name)).st_size
                    except FileNotFoundError:
                        continue
            self.most = max(self.most, total)


def test_little_lies_on_the_local_disk_and_it_was_stated(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.convert.sites.GROUP_SHARDS", 4)
    tree = tiny_tree(tmp_path / "src", 500)
    told = []
    with Watch(tmp_path / "tmp") as watch:
        convert(
            str(tree), s3.uri, ConvertConfig(shard_rows=20), workers=1, options=s3.options(),
            announce=lambda rows, needs: told.extend(needs),
        )  # fmt: skip
    (remote,), (local,) = ([n for n in told if n.is_local == kind] for kind in (False, True))
    assert remote.where == s3.uri
    assert remote.bytes == 2 * remote.lasting >= 2 * 500 * RECORD_STRIDE
    assert local.where.startswith(str(tmp_path / "tmp"))
    # The shards of one task, and one on its way.
    assert 4 * 20 * RECORD_STRIDE < watch.most <= local.bytes < 0.5 * remote.lasting
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_local_disk_that_is_too_small_is_told_before_the_work(tree, s3, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BudgetError, match=r"takes up to .* with --work, or with TMPDIR"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    assert s3.store().entries() == []


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_half_done(tree, whole, s3, tmp_path):
    # A limit on the size of files refuses a write in the middle, as a full disk does.
    code = """
        import resource, signal, sys
        import lensprep.convert.conversion, lensprep.convert.rounds
        from lensprep.cli import main
        lensprep.convert.rounds.RUN_ROWS = lensprep.convert.conversion.RUN_ROWS = 16
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        main(sys.argv[1:])
    """
    arguments = [tree, s3.uri, "--shard-rows", "20", "--max-reject-rate", "1", "--workers", "1"]
    command = ["convert", *map(str, arguments), "--endpoint-url", s3.server.http]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *command], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "could not be written: File too large" in done.stderr
    assert done.stderr.count("Error:") == 1
    assert list((tmp_path / "tmp").iterdir()) == []
    again = CliRunner().invoke(main, [*command, "--resume"])
    assert again.exit_code == 0, again.stderr
    assert contents(s3) == contents(whole)


def test_a_copy_is_kept_if_asked_for(tree, whole, s3, tmp_path):
    kept = tmp_path / "kept"
    convert(str(tree), s3.uri, CONFIG, workers=1, keep_local=str(kept), options=s3.options())
    assert contents(kept) == contents(s3) == contents(whole)


def test_a_copy_is_not_kept_where_something_is(tree, s3, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"kept holds other files"):
        convert(str(tree), s3.uri, CONFIG, keep_local=str(kept), options=s3.options())
    begin_and_stop(tree, s3)
    (kept / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"kept is a finished dataset"):
        convert(str(tree), s3.uri, CONFIG, keep_local=str(kept), resume=True, options=s3.options())
    assert (kept / "thesis.tex").read_text() == "precious"


def test_a_kept_copy_is_made_whole_by_resume(tree, whole, s3, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    begin_and_stop(tree, s3, keep_local=str(kept))
    shutil.rmtree(kept)  # as if it had begun on another machine
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.conversion.release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(
                str(tree), s3.uri, CONFIG, workers=1, resume=True, keep_local=str(kept),
                options=s3.options(),
            )  # fmt: skip
    convert(
        str(tree), s3.uri, CONFIG, workers=1, resume=True, keep_local=str(kept),
        options=s3.options(),
    )  # fmt: skip
    assert contents(kept) == contents(s3) == contents(whole)


# ---------------------------------------------------------------- occupied places, two writers


def test_what_is_there_is_left_alone(tree, s3, whole):
    store = s3.store()
    store.write("thesis.tex", b"precious")
    with pytest.raises(DatasetError, match=r"but other files\. Choose another folder"):
        convert(str(tree), s3.uri, CONFIG, options=s3.options(), resume=True)
    assert contents(s3) == {"thesis.tex": b"precious"}
    store.delete("thesis.tex")
    convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    with pytest.raises(DatasetError, match="finished dataset already"):
        convert(str(tree), s3.uri, CONFIG, options=s3.options())
    assert contents(s3) == contents(whole)


def test_resume_of_what_is_finished_is_done(tree, whole, s3, proxy, tmp_path):
    convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    options, kept = s3.options(endpoint_url=proxy.url), tmp_path / "kept"
    convert(
        str(tree), s3.uri, CONFIG, workers=1, options=options, resume=True, keep_local=str(kept)
    )
    assert not proxy.count("PUT ") + proxy.count("POST ")
    assert contents(kept) == contents(s3) == contents(whole)
    other = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="made with seed = 0, not 9"):
        convert(str(tree), s3.uri, other, options=options, resume=True)
    assert contents(s3) == contents(whole)


def test_after_too_many_rejects_the_corrected_conversion_works(tree, whole, s3):
    strict = ConvertConfig(shard_rows=4, seed=9, max_reject_rate=0.0)
    with pytest.raises(BudgetError, match="empty_blob 1"):
        convert(str(tree), s3.uri, strict, workers=1, options=s3.options())
    convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    assert contents(s3) == contents(whole)


def test_of_two_that_begin_at_once_one_makes_the_dataset(tree, whole, s3):
    ready = threading.Barrier(2)

    def make(seed):
        config = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=seed)
        try:
            return convert(
                str(tree), s3.uri, config, workers=1, options=s3.options(),
                announce=lambda *_: ready.wait(),
            )["dataset_id"]  # fmt: skip
        except ProjectError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(make, (0, 1)))
    (loser,) = [result for result in results if isinstance(result, ProjectError)]
    (winner,) = [result for result in results if isinstance(result, str)]
    assert "has just begun" in str(loser)
    assert Dataset.open(s3.uri, s3.options()).dataset_id == winner
    assert verify(s3.uri, against=str(tree), sample=None, options=s3.options(), workers=1)["ok"]


def test_a_manifest_that_somebody_else_put_there_stays(tree, s3):
    def intrude(phase, done, total):
        if phase == "shards":
            s3.store().write("manifest.json", b"{}")

    with pytest.raises(ChangedError, match="other content"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options(), progress=intrude)
    assert s3.store().read("manifest.json") == b"{}"


def test_a_shard_of_somebody_else_is_not_replaced(tree, s3):
    def intrude(phase, done, total):
        if phase == "decode":
            s3.store().write("train/train-000000.tar", b"other")

    with pytest.raises(DatasetError, match=r"train-000000\.tar is there already.*--resume"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options(), progress=intrude)
    assert s3.store().read("train/train-000000.tar") == b"other"
    with pytest.raises(DatasetError):
        Dataset.open(s3.uri, s3.options())


def test_one_that_another_finished_meanwhile_says_so(tree, whole, s3):
    finished = []

    def finish(phase, done, total):
        if phase == "shards" and not finished:
            finished.append(
                convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
            )

    with pytest.raises(DatasetError, match="finished by another conversion meanwhile"):
        convert(str(tree), s3.uri, CONFIG, workers=1, progress=finish, options=s3.options())
    assert contents(s3) == contents(whole)


# ---------------------------------------------------------------- stops, kills, resume


def test_resume_is_asked_for_repeats_nothing_and_refuses_other_settings(
    tree, whole, s3, proxy, monkeypatch
):
    begin_and_stop(tree, s3)
    before = {entry.name: entry.version for entry in s3.store().entries()}
    shards = [name for name in before if name.endswith(".tar")]
    assert len(shards) == 2
    with pytest.raises(DatasetError, match="Add --resume"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=s3.options())
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.conversion.RUN_ROWS", 32)
        with pytest.raises(DatasetError, match="begun with run_rows = 16, not 32"):
            convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
    other = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="begun with seed = 0, not 9"):
        convert(str(tree), s3.uri, other, workers=1, resume=True, options=s3.options())
    options = s3.options(endpoint_url=proxy.url)
    convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=options)
    writes = [line.split()[1] for line in proxy.requests if line.startswith(("PUT", "POST"))]
    assert not [line for line in writes if "/run-" in line]
    assert not [line for line in writes for name in shards if line.endswith(name)]
    assert len(writes) == len(set(writes))
    assert writes[-1].endswith("manifest.json")
    assert contents(s3) == contents(whole)


def test_what_killed_uploads_left_is_aborted(tree, whole, s3):
    begin_and_stop(tree, s3, "decode")
    store = s3.store()
    for name in ("train/train-000000.tar", ".work/run-000005-000.run"):
        store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key(name))
    assert len(unfinished(s3)) == 2
    convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
    assert unfinished(s3) == []
    assert contents(s3) == contents(whole)


PROGRAM = """
import sys
import lensprep.convert.conversion, lensprep.convert.rounds
from lensprep.convert import conversion, rounds
rounds.RUN_ROWS = conversion.RUN_ROWS = 40  # many tasks
from lensprep.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    table = tiny_table(500)
    tree = write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=3, row_group_rows=20)
    out = tmp_path_factory.mktemp("whole") / "ds"
    convert(str(tree), str(out), ConvertConfig(shard_rows=25), workers=1)
    return tree, out


def start(tmp_path, s3, tree, *options, endpoint=None, program=PROGRAM):
    file = tmp_path / "program.py"
    file.write_text(program)
    arguments = ["convert", tree, s3.uri, "--shard-rows", 25, "--workers", 2, *options]
    return subprocess.Popen(
        [sys.executable, file, *map(str, arguments), "--endpoint-url", endpoint or s3.server.http],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_objects(s3, process, part):
    """Until an object whose name holds a text is there, or the dataset is finished."""
    while process.poll() is None:
        names = [entry.name for entry in s3.store().entries()]
        if any(part in name for name in names) or "manifest.json" in names:
            return
        time.sleep(0.02)


def test_a_stop_leaves_no_unfinished_upload(larger, s3, tmp_path):
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        proxy.add(Fault("stall", b"PUT /bucket", holding=b"partNumber=", times=1000))
        one_run = PROGRAM.replace(" = 40 ", " = 4096 ")  # of 13 MB, in three parts
        process = start(tmp_path, s3, larger[0], endpoint=proxy.url, program=one_run)
        deadline = time.monotonic() + 60
        while not proxy.count("partNumber=") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert unfinished(s3)
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, out + errors
    assert unfinished(s3) == []


def kill_and_resume(tmp_path, s3, tree, rng, moments):
    kills, options = 0, []
    for part in [*moments, None]:
        process = start(tmp_path, s3, tree, *options)
        if part is not None:
            wait_for_objects(s3, process, part)
            time.sleep(rng.uniform(0, 0.3))
        else:
            process.wait(120)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            options = ["--resume"]
            continue
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        assert SECRET_KEY not in out + errors
        break
    return kills


def test_killed_and_resumed_ends_in_the_same_bytes(larger, s3, tmp_path):
    tree, whole = larger
    assert kill_and_resume(tmp_path, s3, tree, random.Random(1), [".tar"]) >= 1
    assert without_groups(contents(s3)) == without_groups(contents(whole))
    assert unfinished(s3) == []
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_killed_at_many_random_moments(larger, s3, tmp_path):
    tree, whole = larger
    kills = 0
    for number in range(5):
        place = Place(s3.server)
        rng = random.Random(number)
        moments = [rng.choice(["plan", "run-0", ".tar", "rejects"]) for _ in range(5)]
        kills += kill_and_resume(tmp_path, place, tree, rng, moments)
        assert without_groups(contents(place)) == without_groups(contents(whole))
        assert unfinished(place) == []
    assert kills >= 8


@pytest.mark.slow
def test_a_signal_stops_cleanly_and_resume_goes_on(larger, s3, tmp_path):
    tree, whole = larger
    process = start(tmp_path, s3, tree)
    wait_for_objects(s3, process, ".tar")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(s3.uri, s3.options())
    again = start(tmp_path, s3, tree, "--resume")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert without_groups(contents(s3)) == without_groups(contents(whole))


# ---------------------------------------------------------------- faults


def test_faults_of_every_kind_lose_nothing_and_double_nothing(tree, whole, s3, proxy, caplog):
    path = f"/bucket/{s3.uri.split('/', 3)[3]}/".encode()
    put, get = b"PUT " + path, b"GET " + path
    proxy.add(
        Fault("reset-request", put + b".work/run-000001-000.run", after=100_000),
        Fault("answer", put + b".work/run-000002", times=2),
        Fault("lose-answer", put + b".work/run-000003"),
        Fault("lose-answer", put + b".work/plan.json"),
        Fault("reset-answer", get + b".work/run-000004", after=50_000, times=2),
        Fault("stall", get + b".work/run-000002-000.run", after=10_000),
        Fault("answer", get + b".work/run-000005", times=2),
        Fault("reset-request", put + b"train/train-000000.tar", after=200_000),
        Fault("lose-answer", put + b"val/val-000000.tar"),
        Fault("lose-answer", put + b"val/val-000000.parquet"),
        Fault("lose-answer", put + b"manifest.json"),
    )
    options = s3.options(endpoint_url=proxy.url)
    convert(str(tree), s3.uri, CONFIG, workers=1, options=options)
    assert contents(s3) == contents(whole)
    assert unfinished(s3) == []
    for told in ("503 SlowDown", "with this content", "trying again"):
        assert told in caplog.text
    # A connection that carried another request before may pass a fault by.
    assert sum(fault.times for fault in proxy._faults) <= 3


def test_a_missing_bucket_is_told_at_once(tree, s3):
    with pytest.raises(StorageError, match="s3://no-such-bucket-at-all: no such bucket"):
        convert(str(tree), "s3://no-such-bucket-at-all/x", CONFIG, options=s3.options())


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "wrong-secret")]
)
def test_wrong_credentials_are_told_at_once(tree, s3, proxy, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(StorageError, match="does not accept the credentials") as caught:
        convert(str(tree), s3.uri, CONFIG, options=s3.options(endpoint_url=proxy.url))
    assert time.monotonic() - started < 20  # trying again would take a minute
    assert len(proxy.requests) == 1
    assert value not in str(caught.value)


@pytest.mark.parametrize("where", [b".work/run-000004", b"train/"])
def test_credentials_that_expire_end_it_soon_and_it_can_go_on(tree, whole, s3, proxy, where):
    path = f"PUT /bucket/{s3.uri.split('/', 3)[3]}/".encode() + where
    proxy.add(Fault("answer", path, times=1000, status=400, code="ExpiredToken"))
    options = s3.options(endpoint_url=proxy.url)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"have expired.*what is done is kept"):
        convert(str(tree), s3.uri, CONFIG, workers=1, options=options)
    assert time.monotonic() - started < 30
    assert 1000 - proxy._faults[0].times == 1
    proxy._faults.clear()
    convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=options)
    assert contents(s3) == contents(whole)


def test_a_source_that_changed_between_listing_and_reading_is_an_error(tree, s3):
    source = S3Store(f"{s3.uri}-source", s3.options())
    put_tree(source, tree)
    victim = source.entries()[-1].name
    data = bytes(source.read(victim))

    def change(*_):
        source.write(victim, data[:1000] + bytes(1) + data[1001:])

    with pytest.raises(ChangedError, match="was replaced after it was listed"):
        convert(source.uri, s3.uri, CONFIG, workers=1, announce=change, options=s3.options())
    assert not s3.store().has("manifest.json")


def test_a_failure_before_anything_was_done_leaves_nothing(tree, s3, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)

    def remove(*_):
        for path in source.rglob("*.parquet"):
            path.unlink()

    with pytest.raises(ProjectError, match="row group 0: no such file"):
        convert(str(source), s3.uri, CONFIG, workers=1, announce=remove, options=s3.options())
    assert s3.store().entries() == []


def test_too_many_rejects_commit_nothing_and_a_higher_rate_goes_on(tree, whole, s3):
    config = ConvertConfig(shard_rows=20, max_reject_rate=0.001)
    with pytest.raises(BudgetError, match=r"1 of 120 rows are rejected \(empty_blob 1\)"):
        convert(str(tree), s3.uri, config, workers=1, options=s3.options())
    assert not s3.store().has("manifest.json")
    convert(str(tree), s3.uri, CONFIG, workers=1, resume=True, options=s3.options())
    assert contents(s3) == contents(whole)


@pytest.mark.slow
def test_the_server_killed_and_started_again_in_the_middle(larger, tmp_path, monkeypatch, caplog):
    tree, whole = larger
    monkeypatch.setattr("lensprep.convert.rounds.RUN_ROWS", 40)
    monkeypatch.setattr("lensprep.convert.conversion.RUN_ROWS", 40)
    server = S3Server(tmp_path)
    set_environment(monkeypatch, server)
    server.start()
    try:
        place = Place(server)
        names = []

        def restart(phase, done, total):
            names.append(phase)
            if (phase, names.count(phase)) in (("decode", 4), ("shards", 4)):
                server.kill()
                again = threading.Timer(1.5, server.start)
                again.start()

        convert(
            str(tree), place.uri, ConvertConfig(shard_rows=25), workers=1, progress=restart,
            options=place.options(),
        )  # fmt: skip
        assert without_groups(contents(place)) == without_groups(contents(whole))
        assert "trying again" in caplog.text
    finally:
        server.kill()


# ---------------------------------------------------------------- the command line


def test_the_command_says_what_goes_where_and_asks_for_class_and_encryption(tree, s3, tmp_path):
    command = ["convert", tree, s3.uri, "--shard-rows", 20, "--max-reject-rate", 1, "--workers", 1]
    more = ["--storage-class", "STANDARD_IA", "--encryption", "AES256", "--work", tmp_path / "w"]
    done = CliRunner().invoke(
        main, [*map(str, [*command, *more]), "--endpoint-url", s3.server.http]
    )
    assert done.exit_code == 0, done.stderr
    assert f"in {s3.uri} (object store)" in done.stderr
    assert f"in {tmp_path}/w/lensprep-" in done.stderr
    assert f"{s3.uri}: 119 stamps" in done.stdout
    store = s3.store()
    for name in ("train/train-000000.tar", "rejects.parquet", "manifest.json"):
        answer = store.client.head_object(Bucket=store.bucket, Key=store.key(name))
        assert answer["StorageClass"] == "STANDARD_IA"
        assert answer["ServerSideEncryption"] == "AES256"
    wrong = CliRunner().invoke(
        main, ["convert", str(tree), str(tmp_path / "ds"), "--encryption", "AES256"]
    )
    assert wrong.exit_code == 2
    assert "s3://" in wrong.stderr


def test_the_work_is_encrypted_and_of_the_common_class(tree, s3):
    seen = []

    def look(phase, done, total):
        if not seen:
            store = s3.store()
            name = next(e.name for e in store.entries(".work/") if e.name.endswith(".run"))
            seen.append(store.client.head_object(Bucket=store.bucket, Key=store.key(name)))

    options = s3.options(storage_class="STANDARD_IA", encryption="AES256")
    convert(str(tree), s3.uri, CONFIG, workers=1, progress=look, options=options)
    assert seen[0]["ServerSideEncryption"] == "AES256"
    assert seen[0].get("StorageClass", "STANDARD") == "STANDARD"
