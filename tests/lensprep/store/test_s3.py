"""The object store's client: faults on the way are survived and told, those that last are clear."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ConnectionClosedError

from lensprep.dataset import Dataset
from lensprep.errors import (
    ChangedError,
    NotFoundError,
    StorageError,
)
from lensprep.store import PART_BYTES, Piece, S3Options
from lensprep.store.arrow import remote_filesystem
from lensprep.store.interrupts import interruptible
from lensprep.store.remotefile import BLOCK_BYTES, RemoteFile
from lensprep.store.s3 import S3Store
from lensprep.store.s3client import connect
from lensprep.store.transfer import (
    abort_unfinished,
    download_file,
    run_files,
    upload_file,
    upload_parts,
)
from tests.faultproxy import ALWAYS, DRAWN, Fault, FaultProxy
from tests.s3server import SECRET_KEY, free_ports
from tests.waiting import wait_until

SIZE = 3 * PART_BYTES + 12_345


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def short_pauses(monkeypatch):
    """Pauses before another try are drawn, here and in botocore."""
    monkeypatch.setattr("random.random", lambda: 0.01)


@pytest.fixture
def large(s3, data):
    s3.store().write("large", data)
    return s3


def through(place, proxy, **changes):
    return S3Store(place.uri, place.options(endpoint_url=proxy.url, **changes))


# ---------------------------------------------------------------- faults that pass


def test_a_reset_in_a_body_is_continued_where_it_broke(large, proxy, data, caplog):
    proxy.add(Fault("reset-answer", b"GET", after=5_000_000, times=3))
    digest = hashlib.sha256(data).hexdigest()
    assert through(large, proxy).read("large", digest) == data
    assert "broke off after" in caplog.text
    # Nothing that had come is read again, but for what was on its way when the connection broke.
    assert proxy.bytes_down < SIZE * 1.2


def test_a_folder_that_is_written_all_the_time_is_listed(s3, monkeypatch):
    store, number = s3.store(), iter(range(100))
    for name in ("kept-0", "kept-1", "kept-2"):
        store.write(name, b"data")
    listed = S3Store.list_once

    def busy(self, prefix):
        """Another file is there at each listing, one grows, and of a name a letter is altered."""
        n = next(number)
        store.write(f"new-{n}", b"data")
        store.write("grows", bytes(n))
        return [
            replace(entry, name="kepu-1") if n == 3 and entry.name == "kept-1" else entry
            for entry in listed(self, prefix)
        ]

    monkeypatch.setattr(S3Store, "list_once", busy)
    names = [entry.name for entry in store.entries()]
    assert {"kept-0", "kept-1", "kept-2", "grows", "new-0"} <= set(names)
    assert "kepu-1" not in names
    assert names == sorted(set(names))


def test_a_stalled_connection_is_given_up_and_continued(large, proxy, data, caplog):
    proxy.add(Fault("stall", b"GET", after=3_000_000, times=2))
    started = time.monotonic()
    assert through(large, proxy, read_timeout_s=0.5).read("large") == data
    assert time.monotonic() - started < 20
    assert "ReadTimeoutError" in caplog.text or "broke off" in caplog.text


@pytest.mark.parametrize("kind", ["answer", "refuse", "lose-answer"])
def test_a_burst_of_refusals_is_ridden_out(large, proxy, short_pauses, data, caplog, kind):
    caplog.set_level(logging.WARNING, "lensprep.s3")
    proxy.add(Fault(kind, b"GET", times=4))
    assert through(large, proxy).read_range("large", 0, SIZE) == data  # four parts side by side
    assert "trying again" in caplog.text
    if kind == "answer":
        assert "503 SlowDown" in caplog.text


def test_a_reset_in_a_put_is_sent_again_once_and_whole(s3, proxy, short_pauses, data, caplog):
    proxy.add(Fault("reset-request", b"PUT", after=1_000_000, times=2))
    through(s3, proxy).write("new", data[:5_000_000])
    assert s3.store().read("new") == data[:5_000_000]
    assert "PutObject" in caplog.text


def test_a_lost_answer_to_a_conditional_write_is_told_from_a_refusal(
    s3, proxy, short_pauses, caplog
):
    proxy.add(Fault("lose-answer", b"PUT"))
    through(s3, proxy).create("manifest", b"mine")
    assert proxy.count("PUT") == 2
    assert "with this content" in caplog.text
    proxy.add(Fault("lose-answer", b"PUT"))
    with pytest.raises(ChangedError, match="other content"):
        through(s3, proxy).create("manifest", b"other")
    assert s3.store().read("manifest") == b"mine"


def test_a_connection_that_never_brings_anything_ends_in_an_error(large, proxy, short_pauses):
    proxy.add(Fault("stall", b"GET", after=2000, times=1000))
    with pytest.raises(StorageError, match="nothing arrived"):
        through(large, proxy, read_timeout_s=0.5, attempts=3).read_range("large", 0, 1000_000)


# ---------------------------------------------------------------- answers that lie


LIES = {
    "altered": Fault("alter", b"GET", after=70),
    "cut": Fault("cut", b"GET", after=70),
    "another-object": Fault("misdirect", b"GET", to="/bucket/{folder}/other"),
    "another-range": Fault("misdirect", b"GET", range="bytes=1-1000"),
    "no-range": Fault("misdirect", b"GET", to="/bucket/{folder}/large"),
    "page": Fault("html", b"GET"),
    "page-with-etag": Fault("html", b"GET", head=b'ETag: "0"\r\n', length=False),
    "no-etag": Fault("drop-header", b"GET", header=b"ETag"),
}


def lie(place, name, times=1):
    fault = LIES[name]
    folder = place.uri.rpartition("/")[2]
    return replace(fault, times=times, to=fault.to.format(folder=folder))


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize("read", [
    lambda store, name: store.read(name),
    lambda store, name: store.read_range(name, 0, 5000),
    lambda store, name: store.read_tail(name, 5000)[0],
    lambda store, name: RemoteFile(store, name).read(),
], ids=["whole", "range", "tail", "file"])  # fmt: skip
def test_an_answer_that_lies_is_asked_for_again(s3, proxy, short_pauses, kind, read):
    data = np.random.default_rng(0).bytes(5000)
    s3.store().write("large", data)
    s3.store().write("other", bytes(5000))
    store = through(s3, proxy)
    store.stat("large")  # an endpoint that never gave a store's answer is not tried again
    proxy.add(lie(s3, kind))
    assert read(store, "large") == data
    assert proxy.happened.total() == 1


def test_what_a_digest_guards_is_read_once_and_what_has_none_twice_over_plain_http(s3, proxy, data):
    s3.store().write("x", data[:1000])
    store, place = through(s3, proxy), memoryview(bytearray(1000))
    store.fill(Piece("x", 0, place, checked=True))
    assert proxy.count("GET") == 1
    assert store.read("x", hashlib.sha256(data[:1000]).hexdigest()) == data[:1000]
    assert proxy.count("GET") == 2
    store.fill(Piece("x", 0, place))
    assert proxy.count("GET") == 4
    assert store.read("x") == data[:1000]
    assert proxy.count("GET") == 6
    assert not S3Store(s3.uri, s3.options(endpoint_url=s3.server.https)).connection.plain


def test_a_network_that_alters_everything_is_an_error_in_one_line(s3, proxy, data):
    s3.store().write("x", data[:1000])
    proxy.add(Fault("alter", b"GET", after=DRAWN, times=ALWAYS))
    store = through(s3, proxy, attempts=3)
    for read in (lambda: store.read("x"), lambda: store.read_range("x", 0, 1000)):
        with pytest.raises(StorageError, match=r"network alters what it carries\. Use https"):
            read()


def test_a_listing_that_came_altered_is_asked_for_again(s3, proxy, short_pauses):
    for number in range(3):
        s3.store().write(f"part-{number}.parquet", bytes(number))
    listed, store = s3.store().entries(), through(s3, proxy)
    for seed in range(20):
        proxy.add(Fault("alter", b"GET", after=DRAWN, seed=seed))
        assert store.entries() == listed
    assert proxy.happened["alter"] == 20


WITH_ETAG = [
    lambda store: store.stat("x"), lambda store: store.read("x"),
    lambda store: store.read_tail("x", 5), lambda store: store.write("y", b"1"),
    lambda store: store.create("z", b"1"),
    lambda store: upload_parts(store, "w", [bytes(5 << 20), b"1"], 5 << 20 | 1, 5 << 20),
]  # fmt: skip
WITHOUT = [
    lambda store: store.entries(), lambda store: store.has_any(), lambda store: store.delete("y"),
    abort_unfinished,
]  # fmt: skip


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("work", [*WITH_ETAG, *WITHOUT])
def test_a_page_from_what_never_was_a_store_is_told_at_once_in_one_line(s3, proxy, length, work):
    s3.store().write("x", b"12345")
    proxy.add(Fault("html", times=ALWAYS, length=length))
    with pytest.raises(StorageError, match="not an object store: it sent a") as caught:
        work(through(s3, proxy))
    assert "wrong --endpoint-url?" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("work", WITH_ETAG)
def test_an_answer_without_etag_is_told_in_one_line(s3, proxy, work):
    s3.store().write("x", b"12345")
    proxy.add(Fault("drop-header", times=ALWAYS, header=b"ETag"))
    with pytest.raises(StorageError, match="it sent an answer without ETag"):
        work(through(s3, proxy, attempts=1))


def test_parts_that_keep_breaking_are_made_smaller(s3, proxy, short_pauses, tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data[: 20 << 20])
    proxy.add(Fault("reset-request", b"PUT", after=6 << 20, times=ALWAYS))
    upload_file(through(s3, proxy), path, "x")
    assert s3.store().read("x") == path.read_bytes()


def test_an_upload_that_cannot_go_on_says_how_much_must_pass_at_once(
    s3, proxy, short_pauses, tmp_path, data
):
    path = tmp_path / "file"
    path.write_bytes(data[: 12 << 20])
    proxy.add(Fault("reset-request", b"PUT", after=1 << 20, times=ALWAYS))
    with pytest.raises(StorageError, match="accepts no parts under 5 MiB"):
        upload_file(through(s3, proxy, attempts=2), path, "x")
    assert s3.store().client.list_multipart_uploads(Bucket="bucket").get("Uploads", []) == []


@pytest.mark.parametrize("progress", [True, False])
def test_tries_of_a_write_are_counted_from_the_last_one_that_the_store_took(
    s3, short_pauses, monkeypatch, progress
):
    store, tries = s3.store(attempts=2), []
    once = store.connection.once

    def broken(operation, **given):
        if not given["Key"].endswith("/x") or len(tries) == 4:
            return once(operation, **given)
        tries.append(1)
        if progress:
            store.write(f"{len(tries)}", b"another thread's part")
        raise ConnectionClosedError(endpoint_url=s3.server.http)

    monkeypatch.setattr(store.connection, "once", broken)
    if progress:
        store.write("x", b"data")
        assert (store.read("x"), len(tries)) == (b"data", 4)
    else:
        with pytest.raises(StorageError, match="the connection broke 2 times in a row"):
            store.write("x", b"data")


# ---------------------------------------------------------------- faults that last


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "wrong-secret")]
)
def test_wrong_credentials_are_one_clear_error_at_once(s3, proxy, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(StorageError, match="does not accept the credentials") as caught:
        through(s3, proxy).entries()
    assert time.monotonic() - started < 20  # trying again would take a minute
    assert len(proxy.requests) == 1
    assert value not in str(caught.value)
    assert SECRET_KEY not in str(caught.value)


def test_credentials_that_expire_in_the_middle_are_one_clear_error(large, proxy):
    store = through(large, proxy)
    store.read_range("large", 0, 10)
    proxy.add(Fault("answer", b"GET", times=1000, status=400, code="ExpiredToken"))
    with pytest.raises(StorageError, match="have expired"):
        store.read("large")
    assert proxy.count("GET") <= 3


def test_no_credentials_and_no_profile_are_said(s3, monkeypatch):
    with pytest.raises(StorageError, match="profile"):
        s3.store(profile="nobody")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="No usable AWS credentials"):
        s3.store().entries()


def test_a_missing_bucket_is_named(s3):
    with pytest.raises(StorageError, match="s3://no-such-bucket-here: no such bucket"):
        S3Store("s3://no-such-bucket-here/x", s3.options()).entries()
    with pytest.raises(StorageError, match="no such bucket"):
        Dataset.open("s3://no-such-bucket-here/x", s3.options())


def test_an_endpoint_where_nobody_listens_is_given_up_soon_and_its_password_not_shown(
    s3, monkeypatch
):
    monkeypatch.setattr("random.random", lambda: 0.5)  # of the pauses
    started = time.monotonic()
    url = f"http://user:hidden-password@127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(StorageError, match="EndpointConnectionError") as caught:
        s3.store(endpoint_url=url).entries()
    assert time.monotonic() - started < 15
    assert "hidden-password" not in str(caught.value)


def test_a_certificate_that_is_not_trusted_is_an_error_at_once(s3, monkeypatch):
    monkeypatch.delenv("AWS_CA_BUNDLE")
    started = time.monotonic()
    with pytest.raises(StorageError, match="AWS_CA_BUNDLE"):
        s3.store(endpoint_url=s3.server.https).entries()
    assert time.monotonic() - started < 20  # trying again would take a minute


def test_bytes_that_are_altered_under_tls_are_asked_for_again(s3, data, short_pauses):
    """TLS tells nothing but that the connection is at its end, in a body or in a handshake."""
    s3.store().write("large", data)
    with FaultProxy(s3.server.ports["https"]) as proxy:
        url = proxy.url.replace("http", "https")
        store = S3Store(s3.uri, s3.options(endpoint_url=url))
        proxy.flips = [700]  # before the store has ever answered
        assert store.read("large") == data
        assert not proxy.flips
        proxy.flips = [20, 200, 700, 1200, 9000, 90_000]
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(store.read, ["large"] * 3)) == [data] * 3
        assert not proxy.flips


def test_an_object_replaced_while_it_is_read_is_an_error(large, proxy, data):
    # The rest must be of the version of which the first part came.
    other, store = large.store(), through(large, proxy)
    replace = Fault("reset-answer", b"GET", after=1_000_000)
    replace.then = lambda: other.write("large", data[::-1])
    proxy.add(replace)
    with pytest.raises(ChangedError, match="replaced while"):
        store.read_range("large", 0, 8_000_000)


def test_an_object_replaced_between_listing_and_reading_is_an_error(large, data):
    store = large.store()
    (entry,) = store.entries("large")
    store.write("large", data[::-1])
    with pytest.raises(ChangedError, match="replaced"):
        store.read_version(entry, 0, 1000)


# ---------------------------------------------------------------- stops


@pytest.mark.parametrize("kind", ["refuse", "answer"])
def test_a_stop_ends_a_pause_before_another_try(s3, proxy, monkeypatch, kind):
    monkeypatch.setattr("random.random", lambda: 1.0)  # the longest pauses: 1, 2, 4, 8 s
    store = through(s3, proxy)
    proxy.add(Fault(kind, b"PUT", times=1000))
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(store.write, "x", b"data")
        wait_until(lambda: proxy.count("PUT") == 3)
        started = time.monotonic()
        store.connection.stop()
        with pytest.raises(StorageError):
            writing.result(20)
        assert time.monotonic() - started < 3.0  # of 4 s, then 8 s and so on
    assert proxy.count("PUT") == 3
    assert through(s3, proxy).connection is not store.connection
    s3.store().write("x", b"data")


def test_an_interrupt_of_a_library_call_does_not_wait_for_more_tries(s3, proxy, monkeypatch):
    monkeypatch.setattr("random.random", lambda: 1.0)
    s3.store().write("x", bytes(2 * PART_BYTES))
    store = through(s3, proxy)
    assert store.stat("x").bytes == 2 * PART_BYTES
    proxy.add(Fault("answer", b"GET", times=1000))
    seen = threading.Thread(
        target=lambda: (wait_until(lambda: proxy.count("GET") >= 3), signal.raise_signal(2))
    )
    seen.start()
    with pytest.raises(KeyboardInterrupt):
        store.read("x")
    ended = time.monotonic()
    seen.join()
    asked = proxy.count("GET")
    proxy._faults.clear()
    assert store.read("x") == bytes(2 * PART_BYTES)  # the same store goes on
    assert time.monotonic() - ended < 3.0  # of a pause of 4 s
    assert proxy.count("GET") <= asked + 4  # two parts, twice


def test_an_object_that_is_another_one_leaves_no_connection_open(s3, monkeypatch):
    """An answer that is dropped with the error keeps its connection until garbage is collected."""
    s3.store().write("x", bytes(10))
    store, answers = s3.store(), []
    get = store.get
    monkeypatch.setattr(store, "get", lambda *of: answers.append(get(*of)) or answers[-1])
    with pytest.raises(ChangedError, match="has 10 bytes, not 100 or more"):
        store.read_range("x", 0, 100)
    assert [answer.body._raw.closed for answer in answers] == [True, True]


def test_an_interrupted_download_brings_no_more_than_was_on_its_way(s3, large, tmp_path, proxy):
    proxy.bytes_per_s = 2e6
    store = through(large, proxy, connections=2)
    jobs = [
        partial(download_file, store, "large", tmp_path / str(n), size=SIZE, sha256=None)
        for n in range(4)
    ]
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_files(store, jobs)
    timer.join()
    assert proxy.bytes_down < SIZE  # of four files
    assert list(tmp_path.iterdir()) == []


def test_the_first_signal_interrupts_and_the_second_has_its_own_effect(s3):
    connection = s3.store().connection
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    with interruptible(signal.SIGTERM):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            seen = [signal.getsignal(signal.SIGTERM), connection.stopped]
    assert seen == [signal.SIG_DFL, True]
    assert signal.getsignal(signal.SIGTERM) == before
    assert s3.store().connection is not connection


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(signal.SIGINT):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- options


def test_options_pickle_and_hold_no_credentials(s3):
    options = s3.options(region="eu-central-1", storage_class="STANDARD_IA")
    copy = pickle.loads(pickle.dumps(options))
    assert copy == options
    assert SECRET_KEY not in repr(copy)
    assert connect(copy) is connect(options)


def test_a_key_for_another_encryption_is_refused():
    with pytest.raises(ValueError, match="kms"):
        S3Options(kms_key_id="k")


def test_storage_class_and_encryption_are_asked_for(s3):
    store = s3.store(storage_class="STANDARD_IA", encryption="AES256")
    store.write("object", b"content")
    answer = store.client.head_object(Bucket=store.bucket, Key=store.key("object"))
    assert answer["StorageClass"] == "STANDARD_IA"
    assert answer["ServerSideEncryption"] == "AES256"


# ---------------------------------------------------------------- files of an object


@pytest.mark.parametrize("read_ahead", [False, True])
def test_a_file_gives_the_bytes_of_the_object_wherever_it_is_read(large, data, read_ahead):
    rng = np.random.default_rng(1)
    with RemoteFile(large.store(), "large", read_ahead=read_ahead) as file:
        for start, length in zip(
            rng.integers(0, SIZE, 20).tolist(), rng.integers(1, 2 * BLOCK_BYTES, 20).tolist(),
            strict=True,
        ):  # fmt: skip
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(1 << 20), b"")) == data
    assert io.BufferedReader(RemoteFile(large.store(), "large")).read() == data


def test_a_file_stays_with_its_version(s3):
    store = s3.store()
    store.write("object", b"a" * 200_000)
    file = RemoteFile(store, "object")
    store.write("object", b"b" * 200_000)
    with pytest.raises(ChangedError, match="replaced"):
        file.read(1000)
    with pytest.raises(ChangedError, match="after it was listed"):
        RemoteFile(store, "object", version=file.entry.version)


def test_ranges_of_many_objects_come_in_one_call(s3):
    store = s3.store()
    store.write("a", b"0123456789")
    store.write("b", b"abcdefghij")
    out = bytearray(7)
    view = memoryview(out)
    store.fetch([Piece("a", 2, view[:4]), Piece("b", 7, view[4:])])
    assert out == b"2345hij"
    with pytest.raises(ChangedError, match="10 bytes where 11 are stated"):
        store.fetch([Piece("a", 0, view[:1], bytes=11)])
    with pytest.raises(NotFoundError):
        store.fetch([Piece("a", 0, view[:1]), Piece("c", 0, view[1:2])])


def test_the_file_system_of_pyarrow_pickles_and_reads(s3):
    table = pq.read_table(io.BytesIO(_parquet()))
    s3.store().write("folder/part.parquet", _parquet())
    filesystem = pickle.loads(pickle.dumps(remote_filesystem(s3.uri, s3.options())))
    path = s3.uri.removeprefix("s3://") + "/folder/part.parquet"
    assert pq.read_table(path, filesystem=filesystem).equals(table)


def _parquet():

    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"x": np.arange(1000), "y": np.random.default_rng(0).random(1000)}), buffer
    )
    return buffer.getvalue()


def test_a_fork_does_not_share_sockets(s3):
    s3.store().write("object", b"content")
    connection = connect(s3.options())
    child = os.fork()
    if child == 0:
        os._exit(0 if connect(s3.options()) is not connection else 1)
    assert os.waitpid(child, 0)[1] == 0
