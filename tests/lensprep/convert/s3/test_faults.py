"""Into an object store: whatever breaks, nothing is lost and nothing doubled."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.errors import BudgetError, ChangedError, ProjectError, StorageError
from lensprep.store.s3 import S3Store
from tests.faultproxy import Fault
from tests.lensprep.convert.conversions import CONFIG
from tests.lensprep.convert.s3.conversions import contents, put_tree, unfinished, without_groups
from tests.s3server import Place, S3Server, set_environment


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


@pytest.mark.parametrize(
    "where", [pytest.param(b".work/run-000004", marks=pytest.mark.slow), b"train/"]
)
def test_credentials_that_expire_end_it_soon_and_it_can_go_on(tree, whole, s3, proxy, where):
    path = f"PUT /bucket/{s3.uri.split('/', 3)[3]}/".encode() + where
    proxy.add(Fault("answer", path, times=1000, status=400, code="ExpiredToken"))
    options = s3.options(endpoint_url=proxy.url)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"have expired.*finished work is kept"):
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
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 40)
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
