"""Moving datasets to and from an object store: whole, once, and resumable whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from lensprep.cli import main
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.errors import (
    BudgetError,
    ChangedError,
    ConfigError,
    DatasetError,
    StorageError,
)
from lensprep.inspection.verify import verify
from lensprep.store import PART_BYTES, Entry
from lensprep.store.s3 import S3Store
from lensprep.transfer import DatasetFile, download, plan_transfer, upload
from tests.datasets import put_folder, tiny_dataset
from tests.faultproxy import Fault, FaultProxy
from tests.phase4c import tiny_tree
from tests.s3server import SECRET_KEY, Place, S3Server, set_environment
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two shards of more than one part, and small ones."""
    folder = tmp_path_factory.mktemp("local")
    return tiny_dataset(folder, {"train": 1060, "val": 40}, 530)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    tree = tiny_tree(folder, 60)
    convert(str(tree), str(folder / "ds"), ConvertConfig(shard_rows=20), workers=1)
    return folder / "ds"


def digests(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def unfinished(place):
    store = place.store()
    answer = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


# ---------------------------------------------------------------- the plan


def test_the_plan_sorts_files_by_what_is_there():
    files = [DatasetFile(name, size, "") for name, size in (("a", 1), ("b", 2), ("c", 0))]
    plan = plan_transfer(files, {"b": Entry("b", 2), "c": Entry("c", 3), "d": Entry("d", 4)})
    assert [f.name for f in plan.absent] == ["a"]
    assert [f.name for f in plan.alike] == ["b"]
    assert [f.name for f in plan.unlike] == ["c"]


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dataset_comes_back_byte_for_byte(s3, converted, tmp_path, scheme):
    options = s3.options(endpoint_url=getattr(s3.server, scheme))
    sent = upload(str(converted), s3.uri, options)
    assert sent["sent_files"] == sent["files"] == len(digests(converted)) - 1
    got = download(s3.uri.replace("s3://", "s3a://"), str(tmp_path / "back"), options)
    assert got["sent_bytes"] == sent["sent_bytes"]
    assert got["dataset_id"] == sent["dataset_id"]
    assert digests(tmp_path / "back") == digests(converted)
    assert verify(str(tmp_path / "back"), workers=1)["ok"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_shards_of_many_parts_are_written_and_read_in_parts(s3, source, tmp_path, scheme):
    options = s3.options(endpoint_url=getattr(s3.server, scheme))
    upload(str(source), s3.uri, options)
    store = s3.store()
    shard = Dataset.open(source).split("train").shards[0]
    assert shard.bytes > PART_BYTES
    answer = store.client.head_object(Bucket=store.bucket, Key=store.key(shard.name))
    assert answer["ETag"].endswith('-2"')  # two parts
    assert answer["Metadata"]["sha256"] == shard.sha256
    download(s3.uri, str(tmp_path / "back"), options)
    assert digests(tmp_path / "back") == digests(source)
    assert unfinished(s3) == []


def test_what_is_there_with_the_same_digest_is_skipped(s3, source, tmp_path, proxy):
    options = s3.options(endpoint_url=proxy.url)
    upload(str(source), s3.uri, options)
    again = upload(str(source), s3.uri, options)
    assert (again["sent_files"], again["skipped_files"]) == (0, again["files"])
    download(s3.uri, str(tmp_path / "back"), options)
    before = proxy.bytes_down
    again = download(s3.uri, str(tmp_path / "back"), options)
    assert again["sent_files"] == 0
    assert proxy.bytes_down - before < 100_000


def test_objects_that_others_copied_there_are_compared_by_reading_them(s3, converted):
    store = s3.store()
    for path in converted.rglob("*.tar"):
        name = path.relative_to(converted).as_posix()
        store.client.put_object(Bucket=store.bucket, Key=store.key(name), Body=path.read_bytes())
    sent = upload(str(converted), s3.uri, s3.options())
    assert sent["skipped_files"] == len(list(converted.rglob("*.tar")))


# ---------------------------------------------------------------- nobody sees half a dataset


def test_until_the_manifest_is_there_there_is_no_dataset(s3, source, proxy):
    proxy.add(Fault("answer", b"PUT", times=100, status=403, code="AccessDenied"))
    with pytest.raises(StorageError, match="Access denied"):
        upload(str(source), s3.uri, s3.options(endpoint_url=proxy.url))
    assert unfinished(s3) == []
    with pytest.raises(DatasetError, match="nothing is there"):
        Dataset.open(s3.uri, s3.options())
    assert upload(str(source), s3.uri, s3.options())["files"] == 6
    assert Dataset.open(s3.uri, s3.options()).dataset_id == Dataset.open(source).dataset_id


def test_the_manifest_is_the_last_thing_written(s3, converted, proxy):
    upload(str(converted), s3.uri, s3.options(endpoint_url=proxy.url))
    writes = [line.split()[1] for line in proxy.requests if line.startswith(("PUT", "POST"))]
    assert writes[-1].endswith("manifest.json")
    assert len(writes) == len(set(writes))


def test_another_dataset_is_never_touched(s3, converted, source, tmp_path):
    upload(str(converted), s3.uri, s3.options())
    before = [(e.name, e.version) for e in s3.store().entries()]
    with pytest.raises(DatasetError, match="holds another dataset"):
        upload(str(source), s3.uri, s3.options())
    assert [(e.name, e.version) for e in s3.store().entries()] == before
    with pytest.raises(DatasetError, match="holds another dataset"):
        download(s3.uri, str(source), s3.options())


def test_leftovers_of_another_dataset_are_not_replaced(s3, converted, tmp_path):
    s3.store().write("train/train-000000.tar", b"something else")
    with pytest.raises(DatasetError, match=r"train-000000\.tar already exists"):
        upload(str(converted), s3.uri, s3.options())
    assert s3.store().read("train/train-000000.tar") == b"something else"
    s3.store().delete("train/train-000000.tar")
    upload(str(converted), s3.uri, s3.options())
    mine = tmp_path / "back" / "train" / "train-000000.tar"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DatasetError, match="already exists"):
        download(s3.uri, str(tmp_path / "back"), s3.options())
    assert mine.read_bytes() == b"mine"


def test_of_two_writers_one_wins_and_what_is_there_is_its_dataset(s3, tmp_path):
    roots = [tiny_dataset(tmp_path, 64, 32, seed=seed, name=str(seed)) for seed in (1, 2)]
    ready = threading.Barrier(2)

    def write(root):
        ready.wait()
        try:
            upload(str(root), s3.uri, s3.options())
        except (DatasetError, ChangedError, StorageError) as error:
            return error
        return root

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(write, roots))
    winners = [result for result in results if isinstance(result, Path)]
    assert len(winners) <= 1
    for winner in winners:
        assert Dataset.open(s3.uri, s3.options()).dataset_id == Dataset.open(winner).dataset_id
        assert verify_without_sidecar_columns(s3)
    if not winners:  # each stopped at the other's files, and there is no dataset
        with pytest.raises(DatasetError):
            Dataset.open(s3.uri, s3.options())


def verify_without_sidecar_columns(place):
    """Every object has the digest that the manifest states."""
    dataset = Dataset.open(place.uri, place.options())
    for info in dataset.manifest.splits.values():
        for shard in info.shards:
            assert len(dataset.read_tar(shard)) == shard.bytes
            assert place.store().stat(shard.name).sha256 == shard.sha256
    return True


def test_two_writers_of_the_same_dataset_do_not_harm_each_other(s3, converted):
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(upload, str(converted), s3.uri, s3.options()) for _ in range(2)]
        assert len({future.result()["dataset_id"] for future in both}) == 1
    assert verify(s3.uri, options=s3.options(), workers=1)["ok"]


# ---------------------------------------------------------------- damage


def test_a_damaged_local_shard_is_not_sent(s3, tmp_path):
    root = tiny_dataset(tmp_path, 1060, 530)
    shard = root / "train" / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[-5000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ChangedError, match=r"train-000001\.tar is damaged"):
        upload(str(root), s3.uri, s3.options())
    assert "train/train-000001.tar" not in [e.name for e in s3.store().entries()]
    assert unfinished(s3) == []
    shard.write_bytes(data[:-1])
    with pytest.raises(DatasetError, match="bytes where the manifest states"):
        upload(str(root), s3.uri, s3.options())
    shard.unlink()
    with pytest.raises(DatasetError, match="missing"):
        upload(str(root), s3.uri, s3.options())


def test_a_damaged_object_is_found_by_download_and_mended_by_upload(s3, converted, tmp_path):
    upload(str(converted), s3.uri, s3.options())
    name = "train/train-000000.tar"
    store = s3.store()
    data = bytearray(store.read(name))
    digest = store.stat(name).sha256
    data[700] ^= 1
    store.client.put_object(
        Bucket=store.bucket, Key=store.key(name), Body=bytes(data), Metadata={"sha256": digest}
    )
    with pytest.raises(ChangedError, match="is damaged"):
        download(s3.uri, str(tmp_path / "back"), s3.options())
    assert not (tmp_path / "back" / "manifest.json").exists()
    assert not (tmp_path / "back" / name).exists()
    result = verify(s3.uri, options=s3.options(), workers=1)
    assert {fault["file"] for fault in result["faults"]} == {name}
    store.write(name, bytes(data))  # now its stated digest is its own
    assert upload(str(converted), s3.uri, s3.options())["sent_files"] == 1
    assert verify(s3.uri, options=s3.options(), workers=1)["ok"]


def test_a_dataset_is_not_mixed_into_a_folder_of_other_files(s3, source, tmp_path):
    upload(str(source), s3.uri, s3.options())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    with pytest.raises(DatasetError, match=r"run holds other files \(config\.toml\)"):
        download(s3.uri, str(tmp_path / "run"), s3.options())
    assert os.listdir(tmp_path / "run") == ["config.toml"]


def test_a_damaged_local_copy_is_mended_by_download(s3, converted, tmp_path):
    upload(str(converted), s3.uri, s3.options())
    back = tmp_path / "back"
    download(s3.uri, str(back), s3.options())
    shard = next((back / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    assert download(s3.uri, str(back), s3.options())["sent_files"] == 1
    assert digests(back) == digests(converted)


# ---------------------------------------------------------------- faults on the way


def test_faults_of_every_kind_lose_nothing_and_double_nothing(s3, source, tmp_path, proxy, caplog):
    folder = s3.uri.split("/", 3)[3]
    path = f"/bucket/{folder}/".encode()
    shard = b"GET " + path + b"train/train-000000.tar"
    broken = Fault("reset-answer", shard, holding=b"bytes=0-", after=3_000_000)
    proxy.add(
        Fault("reset-request", b"PUT " + path + b"train/train-000000.tar", after=4_000_000),
        Fault("answer", b"PUT " + path + b"train/train-000001.tar", times=3),
        Fault("lose-answer", b"PUT " + path + b"val/val-000000.parquet"),
        Fault("lose-answer", b"POST " + path + b"train/train-000000.tar?uploadId"),
        Fault("lose-answer", b"PUT " + path + b"manifest.json"),
        broken,
        Fault("stall", b"GET " + path + b"train/train-000001.tar", after=1_000_000),
        Fault("answer", b"GET " + path + b"val/val-000000.tar", times=2),
    )
    options = s3.options(endpoint_url=proxy.url)
    upload(str(source), s3.uri, options)
    download(s3.uri, str(tmp_path / "back"), options)
    assert digests(tmp_path / "back") == digests(source)
    assert {e.name for e in s3.store().entries()} == set(digests(source))
    assert unfinished(s3) == []
    for told in ("503 SlowDown", "with this content", "trying again"):
        assert told in caplog.text
    # A connection that carried another request before may pass a fault by (the breaks of answers
    # have tests of their own in test_s3.py); one that happened must have been told.
    if broken.times == 0:
        assert "broke off" in caplog.text


def test_credentials_that_expire_in_the_middle_end_it_soon_and_it_can_go_on(s3, source, proxy):
    proxy.add(Fault("answer", b"PUT", times=1000, status=400, code="ExpiredToken"))
    options = s3.options(endpoint_url=proxy.url)
    started = time.monotonic()
    with pytest.raises(StorageError, match="have expired"):
        upload(str(source), s3.uri, options)
    assert time.monotonic() - started < 30  # trying again would take a minute
    assert proxy.count("PUT") <= options.connections
    proxy._faults.clear()
    upload(str(source), s3.uri, options)
    assert unfinished(s3) == []


def test_a_missing_bucket_and_wrong_credentials_stop_before_anything_is_sent(
    s3, converted, proxy, monkeypatch
):
    options = s3.options(endpoint_url=proxy.url)
    with pytest.raises(StorageError, match="no such bucket"):
        upload(str(converted), "s3://no-such-bucket-at-all/x", options)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="does not accept the credentials"):
        upload(str(converted), s3.uri, options)
    assert proxy.count("PUT") == proxy.count("POST") == 0
    assert len(proxy.requests) == 2


def test_a_download_stops_at_once_without_a_bucket_or_credentials_and_can_go_on(
    s3, source, tmp_path, proxy, monkeypatch
):
    upload(str(source), s3.uri, s3.options())
    options, back = s3.options(endpoint_url=proxy.url), tmp_path / "back"
    with pytest.raises(StorageError, match="no such bucket"):
        download("s3://no-such-bucket-at-all/x", str(back), options)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StorageError, match="does not accept the credentials"):
            download(s3.uri, str(back), options)
    assert len(proxy.requests) == 2
    assert not back.exists()
    shard = f"GET /bucket/{s3.uri.split('/', 3)[3]}/train/train-000001.tar".encode()
    proxy.add(Fault("answer", shard, times=1000, status=400, code="ExpiredToken"))
    started = time.monotonic()
    with pytest.raises(StorageError, match="have expired"):
        download(s3.uri, str(back), options)
    assert time.monotonic() - started < 30  # trying again would take a minute
    assert 1000 - proxy._faults[0].times <= 2  # one for each part of the shard
    assert not (back / "manifest.json").exists()
    assert not list(back.rglob("*.partial"))
    proxy._faults.clear()
    download(s3.uri, str(back), options)
    assert digests(back) == digests(source)


def test_an_object_replaced_in_the_middle_of_a_download_is_an_error(s3, source, tmp_path, proxy):
    upload(str(source), s3.uri, s3.options())
    name = Dataset.open(source).split("train").shards[0].name
    store = s3.store()
    data = bytes(store.read(name))
    shard = f"GET /bucket/{store.key(name)}".encode()
    replace = Fault("reset-answer", shard, holding=b"bytes=0-", after=1_000_000)
    replace.then = lambda: store.write(name, data[::-1])
    proxy.add(replace)
    with pytest.raises(ChangedError, match=r"replaced|other content"):
        download(s3.uri, str(tmp_path / "back"), s3.options(endpoint_url=proxy.url))
    assert not (tmp_path / "back" / "manifest.json").exists()
    assert not list((tmp_path / "back").rglob("*.partial"))


def test_a_full_disk_is_said_before_and_in_the_middle(s3, source, tmp_path, monkeypatch):
    upload(str(source), s3.uri, s3.options())
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 1000})
        patch.setattr("lensprep.transfer.shutil.disk_usage", lambda _: usage)
        with pytest.raises(BudgetError, match="are free"):
            download(s3.uri, str(tmp_path / "back"), s3.options())
    # A limit on the size of files refuses a write in the middle, as a full disk does.
    code = """
        import resource, signal, sys
        from lensprep.cli import main
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
        main(sys.argv[1:])
    """
    command = ["download", s3.uri, str(tmp_path / "back"), "--endpoint-url", s3.server.http]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *command], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "could not be written: File too large" in done.stderr
    assert done.stderr.count("Error:") == 1
    assert not list((tmp_path / "back").rglob("*.partial"))
    download(s3.uri, str(tmp_path / "back"), s3.options())
    assert digests(tmp_path / "back") == digests(source)


# ---------------------------------------------------------------- stops and kills


def _start(s3, *arguments):
    return subprocess.Popen(
        [Path(sys.executable).with_name("lensprep"), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # An interactive shell gives its background jobs an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_upload_that_was_ended_goes_on_and_leaves_nothing_unfinished(s3, source, proxy, how):
    proxy.add(Fault("stall", b"PUT /bucket", times=1000, after=0))  # no part is ever answered
    process = _start(s3, "upload", source, s3.uri, "--endpoint-url", proxy.url)
    wait_until(lambda: unfinished(s3))
    wait_until(lambda: proxy.count("partNumber=2"))
    process.send_signal(how)
    if how == signal.SIGTERM:
        proxy.stop()  # connections break: what is under way cannot hang
    out, err = process.communicate(timeout=60)
    assert SECRET_KEY not in out + err
    if how == signal.SIGTERM:
        assert process.returncode == 130
        assert "run the same command again" in err
    again = CliRunner().invoke(
        main, ["upload", str(source), s3.uri, "--endpoint-url", s3.server.http, "--json"]
    )
    assert again.exit_code == 0
    assert json.loads(again.stdout)["files"] == 6
    assert unfinished(s3) == []
    assert verify_without_sidecar_columns(s3)


@pytest.mark.parametrize(
    ("how", "request_line"),
    [
        (signal.SIGINT, "list-type=2"),
        (signal.SIGTERM, "?uploads"),
        (signal.SIGINT, "partNumber=1"),
        pytest.param(signal.SIGTERM, "list-type=2", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "?uploads", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "partNumber=1", marks=pytest.mark.slow),
    ],
)
def test_a_stop_while_the_store_is_away_is_not_put_off(s3, source, proxy, how, request_line):
    proxy.add(Fault("stall", b"PUT /bucket", times=1000, after=0))
    process = _start(s3, "upload", source, s3.uri, "--endpoint-url", proxy.url)
    wait_until(lambda: proxy.count(request_line))
    process.send_signal(how)
    proxy.stop()
    err = process.communicate(timeout=20)[1]  # to try again would take a minute
    assert process.returncode == 130
    # What another thread had to leave behind may be told after it.
    assert "Stopped. Finished work is kept: run the same command again." in err.splitlines()


def test_a_download_that_was_killed_goes_on_where_files_were_whole(s3, source, tmp_path, proxy):
    upload(str(source), s3.uri, s3.options())
    key = s3.uri.split("/", 3)[3]
    proxy.add(Fault("stall", f"GET /bucket/{key}/train/train-000001.tar".encode(), times=1000))
    back = tmp_path / "back"
    process = _start(s3, "download", s3.uri, back, "--endpoint-url", proxy.url)
    wait_until(lambda: (back / "train" / "train-000000.tar").exists())
    process.kill()
    process.communicate(timeout=60)
    assert not (back / "manifest.json").exists()
    again = download(s3.uri, str(back), s3.options())
    assert again["skipped_files"] >= 1
    assert digests(back) == digests(source)


@pytest.mark.slow
def test_workers_read_and_verify_there_too(s3, tmp_path):
    tree = tiny_tree(tmp_path, 120)
    store = S3Store(f"{s3.uri}/stamps", s3.options())
    put_folder(store, tree)
    config = ConvertConfig(shard_rows=20)
    convert(store.uri, str(tmp_path / "ds"), config, workers=2, options=s3.options())
    upload(str(tmp_path / "ds"), f"{s3.uri}/ds", s3.options())
    result = verify(f"{s3.uri}/ds", against=store.uri, workers=2, options=s3.options())
    assert result["ok"]
    assert result["compared"] == 120


@pytest.mark.slow
def test_the_server_killed_and_started_again_in_the_middle(source, tmp_path, monkeypatch, caplog):
    server = S3Server(tmp_path)
    set_environment(monkeypatch, server)
    server.start()
    try:
        place = Place(server)
        with FaultProxy(server.ports["s3"]) as proxy, ThreadPoolExecutor(1) as threads:
            options = place.options(endpoint_url=proxy.url)
            proxy.bytes_per_s = 4e6
            for move, arguments in (
                (upload, (str(source), place.uri)),
                (download, (place.uri, str(tmp_path / "back"))),
            ):
                seen = len(proxy.requests)
                future = threads.submit(move, *arguments, options)
                wait_until(lambda seen=seen: len(proxy.requests) > seen + 8)
                server.kill()
                time.sleep(1)
                server.start()
                future.result(timeout=240)
        assert digests(tmp_path / "back") == digests(source)
        assert {e.name for e in place.store().entries()} == set(digests(source))
    finally:
        server.kill()
    assert "trying again" in caplog.text


# ---------------------------------------------------------------- the command line


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_commands_print_json_and_their_errors_are_one_line(s3, converted, tmp_path):
    endpoint = ("--endpoint-url", s3.server.http)
    sent = run("upload", converted, s3.uri, "--storage-class", "STANDARD_IA", *endpoint, "--json")
    data = json.loads(sent.stdout)
    assert data["destination"] == s3.uri
    assert data["bytes_per_s"] > 0
    text = run("download", s3.uri, tmp_path / "back", *endpoint)
    assert text.exit_code == 0
    assert f"{data['files']} files" in text.stdout
    for command in (
        ["upload", converted, tmp_path / "x"],
        ["upload", tmp_path / "nothing", s3.uri, *endpoint],
        ["download", s3.uri + "/nothing", tmp_path / "y", *endpoint],
    ):
        failed = run(*command)
        assert failed.exit_code == 1
        assert failed.stderr.startswith("Error: ")
        assert failed.stderr.count("\n") == 1
    assert run("upload", converted, s3.uri, "--kms-key-id", "k").exit_code == 2


def test_a_place_that_is_not_remote_is_refused(converted, tmp_path):
    with pytest.raises(ConfigError, match="s3://bucket/folder"):
        upload(str(converted), str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="s3://bucket/folder"):
        download(str(converted), str(tmp_path / "x"))


def test_inspect_verify_and_check_work_there(s3, converted, tmp_path, proxy):
    endpoint = ("--endpoint-url", proxy.url)
    run("upload", converted, s3.uri, *endpoint)
    here = json.loads(run("inspect", converted, "--sample", 3, "--json").stdout)
    picture = tmp_path / "picture.png"
    there = run("inspect", s3.uri, "--sample", 3, "--montage", picture, *endpoint, "--json")
    there = json.loads(there.stdout)
    assert picture.stat().st_size > 10_000
    for name in ("splits", "sky", "models", "statistics", "histograms", "pixels", "record"):
        assert there[name] == here[name]
    shard = run("inspect", f"{s3.uri}/val/val-000000.tar", *endpoint, "--json")
    assert json.loads(shard.stdout)["kind"] == "shard"
    result = run("verify", s3.uri, *endpoint, "--workers", 1, "--json")
    assert json.loads(result.stdout)["ok"]
    s3.store().write("val/stray.tar", b"?")
    result = run("verify", s3.uri, *endpoint, "--workers", 1, "--json")
    assert [fault["file"] for fault in json.loads(result.stdout)["faults"]] == ["val/stray.tar"]


def test_inspect_reads_a_small_part_of_large_shards(s3, tmp_path):
    root = tiny_dataset(tmp_path, {"train": 2000}, 1000)
    upload(str(root), s3.uri, s3.options())
    with FaultProxy(s3.server.ports["https"]) as proxy:  # over plain HTTP it reads them twice
        url = proxy.url.replace("http", "https")
        assert run("inspect", s3.uri, "--sample", 1500, "--endpoint-url", url).exit_code == 0
    assert proxy.bytes_down < 0.2 * sum(path.stat().st_size for path in root.rglob("*.tar"))


def test_a_source_is_checked_converted_and_compared_where_it_lies(s3, tmp_path, proxy):
    tree = tiny_tree(tmp_path, 120)
    store = S3Store(f"{s3.uri}/stamps", s3.options())
    put_folder(store, tree)
    endpoint = ("--endpoint-url", proxy.url)
    here = json.loads(run("check", tree, "--json").stdout)
    there = json.loads(run("check", store.uri.replace("s3:", "s3a:"), *endpoint, "--json").stdout)
    assert there["findings"] == here["findings"]
    assert there["digest"] == here["digest"]
    # Blobs are most of the files, and are not read.
    assert proxy.bytes_down < 0.7 * here["bytes"]
    arguments = ("--shard-rows", 20, "--workers", 1)
    assert run("convert", store.uri, tmp_path / "ds", *arguments, *endpoint).exit_code == 0
    convert(str(tree), str(tmp_path / "other"), ConvertConfig(shard_rows=20), workers=1)
    ids = {Dataset.open(tmp_path / name).dataset_id for name in ("ds", "other")}
    assert len(ids) == 1
    result = verify(
        str(tmp_path / "ds"), against=store.uri, sample=None, options=s3.options(), workers=1
    )
    assert result["ok"]
    assert result["compared"] == 120
    missing = run("check", f"{s3.uri}/nothing", *endpoint)
    assert missing.exit_code == 1
    assert "no such file or folder" in missing.stderr
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in missing.stderr
