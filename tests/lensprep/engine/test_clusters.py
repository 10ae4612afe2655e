"""Dask and Spark: the bytes of local processes, early results, errors as they are, lost workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.engine import base, make_engine
from lensprep.engine.base import call_packed, pack
from lensprep.engine.dask import DaskEngine
from lensprep.engine.local import LocalEngine
from lensprep.engine.witness import WitnessEngine
from lensprep.errors import ConfigError, InputError, ProjectError, StorageError
from lensprep.inspection.verify import verify
from tests.engine_tasks import (
    DetailedError,
    HoldingEngine,
    Killer,
    die,
    die_once_at_three,
    fail_at_three,
    fail_strangely,
    fail_with_detail,
    square,
    wait_for_go,
)
from tests.phase4c import tiny_table, write_tree
from tests.s3server import set_environment
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
CONFIG = ConvertConfig(shard_rows=30)
ENGINES = ["dask", "spark"]

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")


@pytest.fixture(scope="module", autouse=True)
def _workers_find_the_tests_and_the_store(s3_server):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        set_environment(patch, s3_server)
        yield


@pytest.fixture(scope="module")
def engines():
    """Both engines with two processes each, started when a test first asks for one."""
    open_engines = {}

    def get(name):
        if name == "spark" and shutil.which("java") is None:
            pytest.skip("Spark needs Java")
        if name not in open_engines:
            open_engines[name] = make_engine(name, workers=2).__enter__()
        return open_engines[name]

    yield get
    for engine in open_engines.values():
        engine.__exit__(None, None, None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    table = tiny_table(240)
    return write_tree(tmp_path_factory.mktemp("src"), table, files_per_split=2, row_group_rows=20)


@pytest.fixture(scope="module")
def local(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "ds"
    convert(str(tree), str(out), CONFIG, workers=1)
    return contents(out)


@pytest.fixture
def many_tasks(monkeypatch):
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 40)


def contents(root):
    """What must be the same: the dataset id, and the digest of every tar and sidecar."""
    manifest = Dataset.open(root).manifest
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return manifest.dataset_id, {s.name: (s.sha256, s.sidecar_sha256) for s in shards}


def require_clean(out, local, tree):
    assert contents(out) == local
    assert verify(str(out), against=str(tree), sample=None, workers=1)["ok"]
    names = {path.name for path in out.iterdir()}
    assert names == {"manifest.json", "rejects.parquet", "train", "val", "test"}
    assert not list(out.rglob(".*"))


# ------------------------------------------------------------------------------- what both do


@pytest.mark.parametrize("name", ENGINES)
def test_every_task_is_done_once_and_again(engines, name):
    for count in (20, 1, 0):
        results = list(engines(name).run(square, range(count)))
        assert sorted(results) == [n * n for n in range(count)]
    assert engines(name).workers == 2


@pytest.mark.parametrize("name", ENGINES)
def test_results_come_while_others_run(engines, name, tmp_path):
    results = engines(name).run(partial(wait_for_go, tmp_path), range(5))
    assert next(results) == 0
    (tmp_path / "go").touch()
    assert sorted(results) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ENGINES)
def test_an_error_of_a_task_arrives_as_it_is(engines, name):
    with pytest.raises(InputError, match=r"^three is bad$"):
        list(engines(name).run(fail_at_three, range(20)))
    with pytest.raises(DetailedError) as caught:
        list(engines(name).run(fail_with_detail, [7]))
    assert caught.value.args == ("object changed", {"offset": 7})
    assert list(engines(name).run(square, [3])) == [9]


@pytest.mark.parametrize("name", ENGINES)
def test_an_error_that_cannot_be_sent_is_told_all_the_same(engines, name):
    with pytest.raises(Exception, match="5 cannot be made"):
        list(engines(name).run(fail_strangely, [5]))


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_not_begun_is_dropped_when_the_caller_goes_away(engines, name, tmp_path):
    results = engines(name).run(partial(wait_for_go, tmp_path), range(30))
    assert next(results) == 0
    threading.Timer(0.5, (tmp_path / "go").touch).start()
    results.close()
    begun = len(list(tmp_path.glob("begun-*")))
    assert begun < 8
    time.sleep(0.5)
    # A Python worker of Spark may yet begin what it has in hand: `WitnessEngine` is for that.
    in_hand = engines(name).workers if name == "spark" else 0
    assert begun <= len(list(tmp_path.glob("begun-*"))) <= begun + in_hand
    assert list(engines(name).run(square, [3])) == [9]


@pytest.mark.parametrize(
    ("name", "message"),
    [("dask", "4 workers were killed.*--resume"), ("spark", "4 times.*--resume")],
)
def test_a_task_that_kills_every_worker_is_given_up(engines, name, message):
    with pytest.raises(ProjectError, match=message):
        list(engines(name).run(die, [1]))
    assert list(engines(name).run(square, [3])) == [9]


@pytest.mark.parametrize("name", ENGINES)
def test_the_task_of_a_killed_worker_is_done_again(engines, name, tmp_path):
    function = partial(die_once_at_three, tmp_path)
    assert sorted(engines(name).run(function, range(9))) == list(range(9))
    assert (tmp_path / "died").exists()


# ------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("name", ENGINES)
def test_conversion_gives_the_bytes_of_local_processes(
    engines, name, tree, local, tmp_path, many_tasks
):
    seen = []
    report = convert(
        str(tree), str(tmp_path / "ds"), CONFIG, engine=engines(name),
        progress=lambda *progress: seen.append(progress),
    )  # fmt: skip
    require_clean(tmp_path / "ds", local, tree)
    assert report["accepted"] == 240
    assert report["peak_rss_bytes"] > 2 * 50_000_000  # two workers have NumPy and Arrow at least
    assert len(seen) > 10
    assert seen[-1] == ("shards", 240, 240)


def test_workers_without_a_shared_disk_meet_in_an_object_store(
    engines, tree, local, s3, tmp_path, many_tasks
):
    report = convert(
        str(tree), s3.uri, CONFIG, engine=engines("dask"), keep_local=str(tmp_path / "kept"),
        options=s3.options(),
    )  # fmt: skip
    assert report["accepted"] == 240
    require_clean(tmp_path / "kept", local, tree)
    assert verify(s3.uri, options=s3.options(), workers=1)["ok"]
    assert not [e.name for e in s3.store().entries() if e.name.startswith(".")]


@pytest.mark.slow
def test_spark_does_the_task_of_a_killed_worker_again(engines, tree, local, tmp_path, many_tasks):
    engine = engines("spark")
    (tmp_path / "calls").mkdir()
    with Killer(tmp_path / "calls") as killer:
        convert(
            str(tree), str(tmp_path / "ds"), CONFIG,
            engine=HoldingEngine(engine, tmp_path / "calls"),
        )  # fmt: skip
    killer.require_repeated()
    require_clean(tmp_path / "ds", local, tree)


@contextmanager
def processes():
    """Starts processes and ends them by their ids."""
    started = []

    def start(*command, **options):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen([*map(str, command)], **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()  # asked to end, a Dask worker may wait for a scheduler that has gone
        for process in started:
            process.communicate(timeout=30)


@contextmanager
def dask_cluster(folder, workers, *options):
    """A scheduler and single worker processes on loopback; yields address and workers."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    with processes() as start:
        start(*dask, "scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard",
              "--scheduler-file", file)  # fmt: skip
        pool = [
            start(*dask, "worker", "--scheduler-file", file, "--no-nanny", "--no-dashboard",
                  "--local-directory", folder / f"worker{n}", *options)
            for n in range(workers)
        ]  # fmt: skip
        yield f"file://{file}", pool


@pytest.mark.slow
def test_dask_does_the_task_of_a_killed_worker_again(tree, local, tmp_path, many_tasks):
    (tmp_path / "calls").mkdir()
    with dask_cluster(tmp_path, 4, "--nthreads", 1) as (address, workers):
        wait_until((tmp_path / "scheduler.json").exists)
        with DaskEngine(address) as engine, Killer(tmp_path / "calls") as killer:
            convert(
                str(tree), str(tmp_path / "ds"), CONFIG,
                engine=HoldingEngine(engine, tmp_path / "calls"),
            )  # fmt: skip
            assert engine.workers == 2
        killer.require_repeated()
        dead = {worker.pid for worker in workers if worker.poll() == -signal.SIGKILL}
        assert dead == {pid for _, _, pid, _ in killer.killed}
        assert sum(worker.poll() is None for worker in workers) == 2  # not ours to end
    require_clean(tmp_path / "ds", local, tree)


class ExecutorKiller(Killer):
    """Kills the executor, a Java process, that the held Python worker belongs to."""

    def victim(self, pid: int) -> int:
        while b"CoarseGrainedExecutorBackend" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
            assert pid > 1
        return pid


@pytest.mark.slow
@needs_java
def test_spark_does_the_tasks_of_a_killed_executor_again(tree, local, tmp_path):
    """Two executors, each a Java process of its own with its Python workers."""
    (tmp_path / "calls").mkdir()
    home = spark_home(tmp_path / "spark")
    program = tmp_path / "program.py"
    program.write_text(SPARK_PROGRAM)
    environment = {**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_HOSTNAME": "127.0.0.1"}
    with processes() as start, ExecutorKiller(tmp_path / "calls") as killer:
        driver = start(
            sys.executable, program, "local-cluster[2,1,1024]", tree, tmp_path / "ds",
            tmp_path / "calls", env=environment, text=True,
        )  # fmt: skip
        _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    killer.require_repeated()
    require_clean(tmp_path / "ds", local, tree)


SPARK_PROGRAM = """
import sys
from pathlib import Path
import lensprep.convert
from lensprep.engine.spark import SparkEngine
from tests.engine_tasks import HoldingEngine
from tests.lensprep.engine.test_clusters import CONFIG

if __name__ == "__main__":
    master, tree, out, calls = sys.argv[1:]
    lensprep.convert.runs.RUN_ROWS = 40
    with SparkEngine(master) as engine:
        assert engine.workers == 2
        lensprep.convert.convert(tree, out, CONFIG, engine=HoldingEngine(engine, Path(calls)))
"""


def spark_home(folder):
    """Spark as it is installed, but with a work folder of its own: executors log there."""
    import pyspark

    folder.mkdir()
    for path in Path(pyspark.__file__).parent.iterdir():
        if path.name in ("bin", "jars", "python"):
            (folder / path.name).symlink_to(path)
    return folder


# ---------------------------------------------------------------------------------- stopping


PROGRAM = """
import sys
import lensprep.convert
lensprep.convert.runs.RUN_ROWS = 20
from lensprep.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""


def begin(tmp_path, *arguments):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, program, "convert", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def session_members(session):
    """Processes of a session, the zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dask", pytest.param("spark", marks=needs_java)])
def test_ctrl_c_ends_all_processes_and_resume_goes_on(name, tree, local, tmp_path):
    out = tmp_path / "ds"
    options = [tree, out, "--shard-rows", 30, "--engine", name, "--workers", 2]
    process = begin(tmp_path, *options)
    while process.poll() is None and not any(out.glob(".work/run-*.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    wait_until(lambda: not session_members(process.pid), 60)
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob(".seen-*"))
    again = begin(tmp_path, *options, "--resume")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    require_clean(out, local, tree)


def test_workers_end_when_the_driver_is_killed(tree, tmp_path):
    out = tmp_path / "ds"
    process = begin(tmp_path, tree, out, "--engine", "dask", "--workers", 2)
    while process.poll() is None and not any(out.glob(".work/run-*.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not session_members(process.pid), 30)


def dask_timeout(seconds):
    """Dask's patience with a scheduler that does not answer; 30 s if nobody says otherwise."""
    import dask
    import distributed  # noqa: F401  its settings are there once it is imported

    return dask.config.set({"distributed.comm.timeouts.connect": seconds})


def test_a_scheduler_that_goes_away_is_told_with_the_remedy(tmp_path):
    with processes() as start:
        file = tmp_path / "scheduler.json"
        dask = [sys.executable, "-m", "dask"]
        scheduler = start(*dask, "scheduler", "--host", "127.0.0.1", "--port", 0,
                          "--no-dashboard", "--scheduler-file", file)  # fmt: skip
        start(*dask, "worker", "--scheduler-file", file, "--no-nanny", "--no-dashboard",
              "--local-directory", tmp_path, "--nthreads", 1)  # fmt: skip
        wait_until(file.exists)
        with dask_timeout("5s"), DaskEngine(f"file://{file}") as engine:
            results = engine.run(partial(wait_for_go, tmp_path), range(5))
            assert next(results) == 0
            scheduler.kill()
            with pytest.raises(ProjectError, match=r"scheduler is gone.*--resume"):
                list(results)
        (tmp_path / "go").touch()


# ------------------------------------------------------------------------- workers elsewhere


def test_a_worker_that_does_not_see_the_folder_does_nothing(tmp_path):
    folder = tmp_path / "ds" / ".work"
    with WitnessEngine(LocalEngine(1), [folder]) as engine:
        assert list(engine.run(square, [3])) == [9]
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(StorageError, match=r"does not see .*/ds/.work.*all workers share"):
            list(engine.run(square, [3]))
    assert not folder.exists()


def test_a_task_that_a_cluster_begins_after_the_end_does_nothing(tmp_path):
    kept = []

    class Late(LocalEngine):
        def run(self, function, tasks):
            kept.append(function)
            return super().run(function, tasks)

    with WitnessEngine(Late(1), [tmp_path]) as engine:
        list(engine.run(square, [3]))
    with pytest.raises(StorageError, match="does not see"):
        kept[0](3)
    assert not list(tmp_path.iterdir())


def test_a_worker_with_another_version_is_refused(monkeypatch):
    packed = pack(square, 3)
    assert call_packed(packed) == 9
    monkeypatch.setattr(base, "__version__", "0.0.1")
    with pytest.raises(ConfigError, match=r"has lensprep 0\.0\.1, the driver .*same environment"):
        call_packed(packed)


def test_threads_of_a_worker_take_turns():
    """Tasks use memory of the process: a worker with threads must not run two at once."""
    inside, most = 0, 0

    def task(_):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1

    TASKS[0] = task
    threads = [threading.Thread(target=call_packed, args=(pack(call_it, 0),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


TASKS = {}


def call_it(which):
    return TASKS[which](which)


def test_a_worker_of_several_threads_gives_the_same_bytes(
    tree, local, tmp_path, many_tasks, caplog
):
    with dask_cluster(tmp_path, 1, "--nthreads", 4) as (address, _):
        wait_until((tmp_path / "scheduler.json").exists)
        with DaskEngine(address) as waiting:  # it says whether workers are there when it enters
            list(waiting.run(square, [3]))
        with DaskEngine(address) as engine:
            convert(str(tree), str(tmp_path / "ds"), CONFIG, engine=engine)
    assert "--nthreads 1" in caplog.text
    require_clean(tmp_path / "ds", local, tree)


def test_a_task_of_the_second_round_is_small_however_many_runs_there_are():
    names = tuple(f"run-{n:06d}-000" for n in range(25_000))
    assert len(pack(square, names)) < 100_000


# ---------------------------------------------------------------------------------- mistakes


def test_neither_engine_is_imported_unless_asked_for():
    code = (
        "import sys, lensprep.cli, lensprep.convert, lensprep.engine.dask, lensprep.engine.spark;"
        "print({'dask', 'distributed', 'pyspark', 'py4j'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:9", "No Dask scheduler answers at tcp"),
        ("nonsense", "--scheduler nonsense: missing port.*such as tcp://host:8786"),
        ("file:///nowhere/s.json", "--scheduler file:///nowhere/s.json: .*No such file"),
    ],
)
def test_a_scheduler_that_is_not_there_is_told(address, message):
    with (
        dask_timeout("1s"),
        pytest.raises(ProjectError, match=message),
    ):
        DaskEngine(address).__enter__()


def test_spark_without_java_is_told(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "JAVA_HOME": str(tmp_path)}
    for tool in ("bash", "dirname", "env", "ps", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    code = "from lensprep.engine import make_engine; make_engine('spark').__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "ProjectError: Spark does not start" in done.stderr.splitlines()[-1]
    assert "JAVA_HOME" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_spark_with_a_master_that_is_nonsense_is_told():
    code = "from lensprep.engine.spark import SparkEngine\nSparkEngine('nonsense').__enter__()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert "ProjectError: Spark does not start with master nonsense" in done.stderr
