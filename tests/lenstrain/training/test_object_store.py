"""Training and scoring from a real object store: the same results as from a disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from lensprep.configfile import to_toml
from lensprep.dataset import RECORD_STRIDE
from lensprep.errors import BudgetError
from lenstrain.cli import main
from lenstrain.data.cache.folder import CacheFolder, CacheOptions
from lenstrain.data.cache.upkeep import fill
from lenstrain.pages.page import AUDIT_NAME
from lenstrain.scoring.infer import infer
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.train import train
from tests.faultproxy import Fault, FaultProxy
from tests.probes import QUICK_SETS
from tests.s3server import uploaded
from tests.waiting import wait_until

# The last three have no effect any more and are still read.
CACHE = ("data.cache_reserve_gb=0", "data.cache=always", "data.disk_mb_per_s=2000",
         "data.store_mb_per_s=1000")  # fmt: skip


@pytest.fixture(scope="module")
def uri(s3_server, dataset):
    with uploaded(s3_server, dataset) as made:
        yield made


@pytest.fixture
def endpoint(s3, monkeypatch):
    """The store as a user names it: by a variable."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    return s3.server.http


@pytest.fixture(scope="module", params=["global", "block"])
def shuffle(request):
    return request.param


@pytest.fixture(scope="module")
def straight(shuffle, dataset, make_config, tmp_path_factory):
    """A run from the local disk."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(dataset, make_config(f"data.shuffle={shuffle}"), out)
    return out


def assert_same_end(one, two):
    first, second = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (one, two))
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert first["loader"] == second["loader"]
    assert first["metrics"] == second["metrics"]


def settings(shuffle, cache):
    chosen = [f"data.shuffle={shuffle}", *CACHE]
    return chosen if cache is None else [*chosen, f"data.cache_dir={cache}"]


def test_a_run_from_the_store_ends_in_the_weights_of_one_from_the_disk(
    straight, shuffle, uri, endpoint, make_config, tmp_path
):
    out = tmp_path / "run"
    result = train(uri, make_config(*settings(shuffle, None)), out)
    assert result["status"] == "completed"
    assert_same_end(straight, out)


def test_a_run_through_the_cache_ends_in_the_same_and_the_next_one_reads_the_disk(
    straight, shuffle, s3, uri, make_config, monkeypatch, tmp_path
):
    config = make_config(*settings(shuffle, tmp_path / "cache"))
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        train(uri, config, tmp_path / "first")
        # A run of a second may end before the last shard has come.
        folder = CacheFolder.open(tmp_path / "cache", CacheOptions(reserve_bytes=0))
        found = fill(folder, uri, ["train", "val"])
        assert found["missing"] == 0
        assert found["fetched"] <= (2 if shuffle == "global" else 4)
        before = len(proxy.requests)
        train(uri, config, tmp_path / "second")
        # Pictures of validation stamps come from the dataset itself; no batch does.
        later = [line for line in proxy.requests[before:] if "/train-" in line and ".tar" in line]
    assert_same_end(straight, tmp_path / "first")
    assert_same_end(straight, tmp_path / "second")
    assert later == []


def test_a_run_that_was_cut_off_goes_on_over_another_transport(
    straight, shuffle, uri, endpoint, make_config, tmp_path
):
    out, seen = tmp_path / "cut", 0

    def progress(event):
        nonlocal seen
        seen += event.stage == "train"
        if event.stage == "train" and seen == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(uri, make_config(*settings(shuffle, None)), out, progress=progress)
    assert (first["status"], first["step"]) == ("interrupted", 5)
    cached = make_config(*settings(shuffle, tmp_path / "cache"))
    assert train(uri, cached, out, resume=True)["status"] == "completed"
    assert_same_end(straight, out)


def test_a_budget_too_small_for_the_validation_names_the_key(uri, endpoint, make_config, tmp_path):
    config = make_config("data.memory_budget_gb=0.015", "data.shuffle=block")
    with pytest.raises(BudgetError, match=r"a quarter of data\.memory_budget_gb = 0\.015"):
        train(uri, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shuffle", ["global"], indirect=True, scope="module")
def test_scores_from_the_store_are_those_from_the_disk(straight, dataset, uri, endpoint, tmp_path):
    best = straight / "checkpoints" / "best.pt"
    tables = []
    for place, options in ((dataset, {}), (uri, {}), (uri, {"cache_dir": tmp_path / "cache"})):
        out = tmp_path / f"{len(tables)}.parquet"
        infer(best, place, split="test", out=out, batch_size=8, device="cpu", **options)
        tables.append(pq.read_table(out))
    assert tables[1].equals(tables[0])
    assert tables[2].equals(tables[0])


@pytest.mark.slow
def test_two_processes_share_the_cache_and_fetch_each_shard_once(
    s3, uri, dataset, make_config, tmp_path
):
    config = make_config("model.norm=group", *settings("global", tmp_path / "cache"))
    path, out = tmp_path / "config.toml", tmp_path / "run"
    path.write_text(to_toml(config))
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "lenstrain", "train", uri, "--config", str(path), "--out", str(out), "--json",
            "--endpoint-url", proxy.url,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        fetched = [line.split()[1] for line in proxy.requests if "/train-" in line]
        fetched = [name for name in fetched if name.endswith(".tar")]
    assert len(fetched) == len(set(fetched)) == 3
    assert done.stderr.count("is read from the cache") == 2  # one line a split, of one process
    alone = tmp_path / "alone"
    train(dataset, make_config("model.norm=group"), alone)
    losses = [
        [record["loss"] for record in map(json.loads, text.splitlines())
         if record["kind"] == "interval"]
        for text in ((run / "metrics.jsonl").read_text() for run in (out, alone))
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)
    assert len(losses[0]) >= 4


# The command line


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "processes"), [("stall", 1), ("refuse", 1), ("stall", 2)])
def test_a_signal_while_the_store_is_away_saves_at_once(
    s3, uri, make_config, tmp_path, kind, processes
):
    """Nothing comes any more after some steps, and a spot machine is taken back."""
    config = tmp_path / "config.toml"
    config.write_text(to_toml(make_config("data.shuffle=block", "train.epochs=4000")))
    out = tmp_path / "run"
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        command = [
            "-m", "lenstrain", "train", uri, "--config", config, "--out", out,
            "--endpoint-url", proxy.url, "--set", "train.patience=0", "--set", "train.log_every=1",
        ]  # fmt: skip
        if processes > 1:
            run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
            command = [*run, *command]
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True
        )
        lines = out / "metrics.jsonl"
        wait_until(lambda: lines.exists() and lines.read_text().count("\n") > 10)
        proxy.add(Fault(kind, b"GET", times=100_000))
        wait_until(lambda: proxy._faults[0].times < 100_000)
        before = lines.read_text()
        wait_until(lambda: has_settled(lines))
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == (75 if processes == 1 else 1), err  # torchrun's own of a signal
    assert len(lines.read_text()) >= len(before)
    step = json.loads((out / "interrupted.json").read_text())["step"]
    assert load_checkpoint(out / "checkpoints" / "last.pt")["step"] == step


def has_settled(path):
    before = path.stat().st_size
    time.sleep(1.0)
    return path.stat().st_size == before


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.parametrize("shuffle", ["block"], indirect=True, scope="module")
def test_train_and_infer_take_the_endpoint_as_an_option(
    s3, uri, dataset, make_config, monkeypatch, tmp_path, straight, shuffle
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody there: the option wins
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # restored after the test
    path, out = tmp_path / "config.toml", tmp_path / "run"
    path.write_text(to_toml(make_config(*settings(shuffle, tmp_path / "cache"))))
    place = ("--endpoint-url", s3.server.http)
    done = invoke("train", uri, "--config", path, "--out", out, *place, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "completed"
    assert "is read from the cache" in done.stderr
    assert "the block shuffle mixes over 90 of 90 samples" in done.stderr
    assert_same_end(straight, out)
    best, scores = out / "checkpoints" / "best.pt", tmp_path / "scores.parquet"
    done = invoke("infer", best, uri, "--out", scores, *place, "--memory-budget", "0.5")
    assert done.exit_code == 0, done.stderr
    assert pq.read_table(scores).num_rows == 40  # val


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["block"], indirect=True, scope="module")
def test_what_judges_a_run_takes_the_endpoint_as_an_option(
    s3, uri, dataset, make_config, monkeypatch, tmp_path, straight, shuffle
):
    best, scores, out = straight / "checkpoints" / "best.pt", tmp_path / "test.parquet", tmp_path
    infer(best, dataset, split="test", out=scores, batch_size=8, device="cpu")
    config = tmp_path / "config.toml"
    config.write_text(to_toml(make_config()))
    for status, *command in (
        (0, "evaluate", scores, "--dataset", uri, "--out", out / "report"),
        (0, "probe", best, uri, "--out", out / "probe", *QUICK_SETS),
        (4, "audit", straight, uri, "--out", out / "audit", "--only", "loader_coverage"),
        (0, "bench", "train", uri, "--config", config, "--seconds", 0.5),
        (0, "generalize", uri, "--config", config, "--out", out / "g", "--hold-out", "lens_model"),
    ):
        # Nobody is there: the option wins. What it sets is taken back after the test.
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        done = invoke(*command, "--endpoint-url", s3.server.http)
        assert done.exit_code == status, done.stderr
    findings = json.loads((out / "audit" / AUDIT_NAME).read_text())["findings"]
    assert {f["item"]: f["passed"] for f in findings}["loader_coverage"]
    assert "data:image/png" in (out / "report" / "report.html").read_text()


def test_the_cache_commands_answer_people_and_scripts(s3, uri, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.server.http)
    folder = ("--dir", tmp_path / "cache")
    done = invoke("cache", "status", *folder)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    done = invoke("cache", "fill", uri, *folder, "--split", "val", "--reserve-gb", 0, "--json")
    found = json.loads(done.stdout)
    assert (found["shards"], found["missing"], found["splits"]) == (2, 0, ["val"])
    done = invoke("cache", "fill", uri, *folder, "--limit-gb", 0.003, "--reserve-gb", 0)
    assert "There was no room for" in done.stdout
    done = invoke("cache", "fill", uri, *folder, "--reserve-gb", 0)
    assert "6 of 6 shards" in done.stdout
    done = invoke("cache", "status", *folder, "--json")
    (held,) = json.loads(done.stdout)["datasets"]
    assert (held["shards"], held["of"], held["in_use"], held["uri"]) == (6, 6, False, uri)
    done = invoke("cache", "status", *folder)
    assert f"6 of 6  {160 * RECORD_STRIDE / 1e6:.1f} MB" in done.stdout
    assert invoke("cache", "verify", *folder).exit_code == 0
    copy = next((tmp_path / "cache").rglob("*.tar"))
    os.truncate(copy, 1000)
    done = invoke("cache", "verify", *folder)
    assert done.exit_code == 1
    assert f"{copy} (" in done.stdout
    assert not copy.exists()
    done = invoke("cache", "clear", *folder, "--dataset", "nothing")
    assert "no dataset of this cache has an id like 'nothing'" in done.stderr
    assert json.loads(invoke("cache", "clear", *folder, "--json").stdout)["removed_bytes"] > 0
    assert json.loads(invoke("cache", "status", *folder, "--json").stdout)["datasets"] == []


def test_a_local_dataset_is_no_matter_for_the_cache(dataset, tmp_path):
    done = invoke("cache", "fill", dataset, "--dir", tmp_path / "cache")
    assert done.exit_code == 1
    assert "is on a disk already" in done.stderr
    done = invoke("cache", "fill", tmp_path / "typo", "--dir", tmp_path / "cache")
    assert "typo is no s3:// location" in done.stderr
