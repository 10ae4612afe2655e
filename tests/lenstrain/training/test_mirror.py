"""Runs in two locations: at every moment the store holds a resumable run, and nothing is lost."""

import json
import os
import shutil
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lensprep.errors import ConfigError, StorageError
from lensprep.store.s3 import S3Store
from lenstrain.evaluation.metrics import steering
from lenstrain.monitor.snapshot import read_snapshot
from lenstrain.scoring.infer import infer
from lenstrain.training import mirror as module
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.home import Home, fetch_newer, find_home, working_folder
from lenstrain.training.mirror import Mirror, TakenError
from lenstrain.training.train import train
from tests.faultproxy import ALWAYS, Fault, FaultProxy

CHECKPOINTS = ("last", "best", *(f"best-{name}" for name in steering(counterfactuals=False)))
RECORDS = ("config.toml", "environment.json", "metrics.jsonl")
SENT = (*RECORDS, *(f"checkpoints/{name}.pt" for name in CHECKPOINTS))


@pytest.fixture
def config_for(make_config):
    def make(uri, *overrides):
        return make_config(f"train.checkpoint_copy={uri}", "train.epochs=1", *overrides)

    return make


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Changes to another machine: one that has nothing of any run."""

    def change(name):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("LENSTRAIN_RUNS", str(tmp_path / name))
        return tmp_path / name

    return change


@pytest.fixture
def store(s3, monkeypatch, machine):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    machine("first")
    return s3.uri


@pytest.fixture(scope="module")
def whole(dataset, make_config, tmp_path_factory):
    """A run that was never cut off."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(dataset, make_config(), out)
    return out


def stop_at(step):
    seen = iter(range(1, 1000))

    def progress(event):
        if event.stage == "train" and next(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def read(uri, name):
    return bytes(S3Store(uri).read(name))


def load(uri, name, folder):
    (folder / "loaded.pt").write_bytes(read(uri, f"checkpoints/{name}.pt"))
    return load_checkpoint(folder / "loaded.pt")


def assert_same_run(uri, whole, folder):
    """What a store holds ends in the bits of a run that was never cut off."""
    for name in CHECKPOINTS:
        found = load(uri, name, folder)
        expected = load_checkpoint(whole / "checkpoints" / f"{name}.pt")
        for part in ("model", "ema"):
            for key, value in (expected[part] or {}).items():
                assert torch.equal(found[part][key], value), (name, key)
        for key in ("step", "epoch", "metrics", "loader", "stopper"):
            assert found[key] == expected[key], name
    lines = [json.loads(line) for line in read(uri, "metrics.jsonl").splitlines()]
    expected = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in expected]


# A run that was asked for in a store


def test_a_run_in_a_store_is_there_whole_and_nowhere_else(
    whole, store, dataset, make_config, tmp_path, caplog
):
    caplog.set_level("INFO", "lenstrain")
    result = train(dataset, make_config(), store)
    assert (result["run"], result["status"]) == (store, "completed")
    assert result["best"] == f"{store}/checkpoints/best.pt"
    assert_same_run(store, whole, tmp_path)
    names = {entry.name for entry in S3Store(store).entries()}
    assert names >= {*SENT, "writer.json"}
    (events,) = (whole / "tensorboard").iterdir()
    (sent,) = [name for name in names if name.startswith("tensorboard/")]
    assert len(read(store, sent)) == pytest.approx(events.stat().st_size, rel=0.1)
    assert f"{store} is written to {working_folder(store)} and sent from there" in caplog.messages
    assert not working_folder(store).exists()
    assert read_snapshot(store).status == "finished"
    scores = [tmp_path / "there.parquet", tmp_path / "here.parquet"]
    for best, out in zip((result["best"], whole / "checkpoints/best.pt"), scores, strict=True):
        infer(best, dataset, split="val", out=out, batch_size=8, device="cpu")
    assert pq.read_table(scores[0]).equals(pq.read_table(scores[1]))
    # Over is over, on any machine; and nobody trains another run over it.
    with pytest.warns(UserWarning, match="was fetched from"):
        assert train(dataset, make_config(), store, resume=True)["step"] == result["step"]
    with pytest.raises(StorageError, match="exists and is not empty"):
        train(dataset, make_config(), store)
    assert_same_run(store, whole, tmp_path)


def test_an_interrupted_run_goes_on_from_the_store_on_a_second_machine(
    whole, store, machine, dataset, make_config, tmp_path
):
    first = train(dataset, make_config(), store, progress=stop_at(11))
    assert (first["status"], first["step"]) == ("interrupted", 11)
    assert load(store, "last", tmp_path)["step"] == 11
    assert read_snapshot(store).status == "interrupted"
    second = machine("second")
    with pytest.warns(UserWarning, match=f"was fetched from {store}, step 11"):
        assert train(dataset, make_config(), store, resume=True)["status"] == "completed"
    assert_same_run(store, whole, tmp_path)
    assert not list(second.rglob("*.pt"))
    names = {entry.name for entry in S3Store(store).entries()}
    assert "interrupted.json" not in names
    assert sum(name.startswith("tensorboard/") for name in names) == 2


LONG = pytest.mark.faults


@pytest.mark.parametrize("objects", [6, *(pytest.param(n, marks=LONG) for n in (3, 4, 7, 9, 11))])
def test_a_machine_that_is_gone_between_two_objects_leaves_a_run_to_go_on_with(
    whole, store, machine, dataset, make_config, tmp_path, monkeypatch, objects
):
    """Of all that a run sends only so much arrives, in that order; the rest of the machine dies."""
    sent, put = [], module.send_open_file

    def dying(to, file, name):
        if len(sent) == objects:
            raise StorageError("the machine is gone")
        sent.append(name)
        put(to, file, name)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what could not be sent
        patch.setattr(module, "send_open_file", dying)
        train(dataset, make_config(), store, progress=stop_at(12))
    assert len(sent) == objects
    machine("second")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "was fetched", if there was a checkpoint yet
        train(dataset, make_config(), store, resume=True)
    assert_same_run(store, whole, tmp_path)


@pytest.mark.parametrize("behind", ["the store", pytest.param("the folder", marks=LONG)])
def test_of_folder_and_store_the_run_goes_on_from_what_is_further(
    whole, store, machine, dataset, make_config, tmp_path, monkeypatch, behind
):
    first = machine("a")
    train(dataset, make_config(), store, progress=stop_at(5))
    kept = tmp_path / "kept"
    shutil.copytree(working_folder(store), kept)
    machine("b")
    with pytest.warns(UserWarning, match="fetched"):
        train(dataset, make_config(), store, resume=True, progress=stop_at(4))
    if behind == "the store":
        # The first machine was further than the store had heard, before the second one began.
        monkeypatch.setenv("LENSTRAIN_RUNS", str(first))
        done = tmp_path / "done"
        shutil.copytree(kept, done)
        train(dataset, make_config(), done, resume=True, progress=stop_at(7))
        shutil.copytree(done, working_folder(store), dirs_exist_ok=True)
        match = "at step 12, and .* at step 9: continuing from the folder"
    else:
        monkeypatch.setenv("LENSTRAIN_RUNS", str(first))
        match = "was fetched from .*, step 9"
    with pytest.warns(UserWarning, match=match):
        train(dataset, make_config(), store, resume=True)
    assert_same_run(store, whole, tmp_path)


def test_a_restart_on_the_same_machine_fetches_nothing(
    whole, s3, store, dataset, make_config, tmp_path, monkeypatch
):
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        train(dataset, make_config(), store, progress=stop_at(5))
        before = len(proxy.requests)
        train(dataset, make_config(), store, resume=True)
        assert not [r for r in proxy.requests[before:] if r.startswith("GET") and ".pt" in r]
        assert_same_run(store, whole, tmp_path)


def test_what_a_finished_run_could_not_send_is_an_error_and_resume_sends_it(
    whole, s3, store, dataset, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "PAUSES", (0.1,))
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        path = store.removeprefix("s3:/").encode()
        proxy.add(Fault("answer", b"PUT " + path + b"/checkpoints", times=ALWAYS))
        folder = working_folder(store)
        with pytest.raises(StorageError, match="does not have the last state") as caught:
            train(dataset, make_config(), store)
        assert str(folder) in str(caught.value)
        assert "--resume sends it" in str(caught.value)
        with pytest.raises(StorageError, match="exists and is not empty"):
            train(dataset, make_config(), store)
        proxy.clear()
        assert train(dataset, make_config(), store, resume=True)["status"] == "completed"
        assert not folder.exists()
        assert_same_run(store, whole, tmp_path)


@pytest.mark.parametrize("kind", ["refuse", pytest.param("answer", marks=LONG)])
def test_an_interrupted_run_does_not_wait_for_a_store_that_is_away(
    s3, store, dataset, make_config, monkeypatch, kind
):
    told = []
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

        def progress(event):
            if event.stage == "train" and event.step == 5:
                proxy.add(Fault(kind, times=ALWAYS))
                told.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.warns(UserWarning, match="does not have the last state.*holds none"):
            result = train(dataset, make_config(), store, progress=progress)
    assert result["status"] == "interrupted"
    assert time.monotonic() - told[0] < 15
    assert load_checkpoint(working_folder_of(store, proxy) / "checkpoints/last.pt")["step"] == 5


def working_folder_of(store, proxy):
    """The proxy has been stopped, but the name of the folder follows from it."""
    (found,) = Path(os.environ["LENSTRAIN_RUNS"]).glob("runs/*")
    return found


def test_a_later_start_takes_the_place_and_an_older_one_ends(store, tmp_path):
    homes = [Home(tmp_path / name, store, is_output=True) for name in ("old", "new")]
    for home in homes:
        (home.folder / "checkpoints").mkdir(parents=True)
        (home.folder / "checkpoints/last.pt").write_bytes(home.folder.name.encode())
    old, new = map(Mirror, homes)
    old.take_place(new=True)
    old.begin(1)
    old.finish(lambda: False, must=True)
    assert read(store, "checkpoints/last.pt") == b"old"
    new.take_place(new=False)
    new.begin(2)
    new.finish(lambda: False, must=True)
    old.submit(["last.pt"], 3)
    with pytest.raises(StorageError, match=r"belongs to a later start of the run, on .* since 20"):
        old.finish(lambda: False, must=True)
    with pytest.raises(TakenError):
        old.submit(["last.pt"], 4)
    assert read(store, "checkpoints/last.pt") == b"new"
    with pytest.raises(TakenError, match="another run has just begun there"):
        Mirror(homes[0]).take_place(new=True)
    for each in (old, new):
        each.close()


def test_the_store_is_looked_at_before_anything_is_trained(
    s3, dataset, make_config, tmp_path, monkeypatch, machine
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    first = machine("first")
    S3Store(s3.uri).write("notes.txt", b"not a run")
    for uri, resume, match in (
        (s3.uri, False, "exists and is not empty"),
        (s3.uri, True, r"is not the folder of a run \(it has no config.toml\)"),
        ("s3://no-such-bucket/run", False, "no such bucket"),
        ("s3://", False, "names no bucket"),
    ):
        with pytest.raises(StorageError, match=match):
            train(dataset, make_config(), uri, resume=resume)
    with pytest.raises(ConfigError, match="Leave the key out"):
        train(dataset, make_config(f"train.checkpoint_copy={tmp_path}"), s3.uri)
    assert not list(first.rglob("*.toml"))
    assert [entry.name for entry in S3Store(s3.uri).entries()] == ["notes.txt"]


def test_the_working_folder_is_found_again_and_needs_no_home(store, tmp_path, monkeypatch):
    assert find_home(store, None).folder == working_folder(store + "/")
    assert working_folder(store) != working_folder(store + "x")
    monkeypatch.delenv("LENSTRAIN_RUNS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert working_folder(store).parent == tmp_path / "cache" / "lenstrain" / "runs"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = tmp_path / f"lenstrain-{os.getuid()}"
    assert working_folder(store).parent == shared / "runs"
    assert shared.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "lenstrain-12345").mkdir()  # made by somebody else
    with pytest.raises(StorageError, match="LENSTRAIN_RUNS"):
        working_folder(store)


# What is fetched


def test_the_newest_checkpoint_is_what_a_run_goes_on_from(whole, tmp_path):
    """best.pt had come and last.pt not yet when the machine was gone."""
    there, home = tmp_path / "there", Home(tmp_path / "here", str(tmp_path / "there"))
    shutil.copytree(whole, there)
    last = load_checkpoint(there / "checkpoints/last.pt")
    torch.save({**last, "step": 7}, there / "checkpoints/last.pt")
    steps = [load_checkpoint(path)["step"] for path in (there / "checkpoints").glob("best*.pt")]
    assert max(steps) > 7
    with pytest.warns(UserWarning, match=f"fetched from .*, step {max(steps)}"):
        fetch_newer(home)
    assert load_checkpoint(home.folder / "checkpoints/last.pt")["step"] == max(steps)
    # And a damaged one is no newest.
    (there / "checkpoints/last.pt").write_bytes(b"not a checkpoint")
    shutil.rmtree(home.folder)
    with (
        pytest.warns(UserWarning, match="was fetched"),
        pytest.warns(UserWarning, match="there/checkpoints/last.pt is no checkpoint"),
    ):
        fetch_newer(home)
    assert load_checkpoint(home.folder / "checkpoints/last.pt")["step"] == max(steps)


def test_only_files_of_a_run_are_fetched(whole, tmp_path):
    there, home = tmp_path / "there", Home(tmp_path / "here", str(tmp_path / "there"))
    shutil.copytree(whole, there)
    for name in ("checkpoints/deep/x.pt", "scores.parquet", "tensorboard/a/b"):
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="was fetched"):
        fetch_newer(home)
    found = {p.relative_to(home.folder).as_posix() for p in home.folder.rglob("*") if p.is_file()}
    events = {f"tensorboard/{path.name}" for path in (whole / "tensorboard").iterdir()}
    assert found == {*SENT, *events}


# A copy of a run that lives in a folder


def test_a_run_lost_with_its_disk_goes_on_from_its_copy(whole, dataset, make_config, tmp_path):
    """The second machine has nothing; it ends in the bits of a run that was never cut off."""
    copy = tmp_path / "elsewhere"
    config = make_config(f"train.checkpoint_copy={copy}")
    first = train(dataset, config, tmp_path / "first", progress=stop_at(11))
    assert first["status"] == "interrupted"
    shutil.rmtree(tmp_path / "first")
    with pytest.warns(UserWarning, match="was fetched from"):
        second = train(dataset, config, tmp_path / "second", resume=True)
    assert second["run"] == str(tmp_path / "second")
    one, two = (load_checkpoint(r / "checkpoints/last.pt") for r in (whole, tmp_path / "second"))
    for name, value in one["model"].items():
        assert (two["model"][name] == value).all(), name
    lines = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((whole / "metrics.jsonl").read_text().splitlines())
    for name in SENT:
        assert (copy / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_copy_that_fails_warns_and_the_run_ends_well(dataset, config_for, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="blocked"):
        result = train(dataset, config_for(blocked), tmp_path / "run")
    assert result["status"] == "completed"
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == result["step"]


def test_a_new_run_is_not_copied_over_another(dataset, config_for, tmp_path):
    config = config_for(tmp_path / "copy")
    train(dataset, config, tmp_path / "one")
    before = (tmp_path / "copy/checkpoints/last.pt").read_bytes()
    with pytest.raises(StorageError, match="holds the checkpoints of another run"):
        train(dataset, config, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    assert (tmp_path / "copy/checkpoints/last.pt").read_bytes() == before


def test_without_a_copy_a_resumed_start_is_a_start(dataset, config_for, tmp_path):
    config = config_for(tmp_path / "copy")
    assert train(dataset, config, tmp_path / "run", resume=True)["status"] == "completed"


def test_the_trainer_does_not_wait_for_a_slow_store(tmp_path, monkeypatch):
    """Submitting returns while the store hangs; a signal leaves the end as long as it is told."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").write_bytes(b"x")
    hang = threading.Event()
    monkeypatch.setattr(Mirror, "_send", lambda self, batch: hang.wait(20))
    monkeypatch.setattr(module, "HURRY_SECONDS", 0.1)
    mirror = Mirror(Home(tmp_path / "run", str(tmp_path / "copy")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mirror.take_place(new=True)
        mirror.begin(0)
        for step in range(3):
            mirror.submit(["last.pt"], step)
    with pytest.warns(UserWarning, match="does not have the last state"):
        mirror.finish(lambda: True, must=False)
    mirror.close()
    hang.set()
