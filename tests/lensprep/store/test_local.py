"""Stores: a local folder, and an object store over HTTP and HTTPS, keep the same promises."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import pytest

from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store import LocalStore, open_store


@pytest.fixture(params=["local", "http", "https"])
def store(request, tmp_path):
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    place = request.getfixturevalue("s3")
    url = place.server.http if request.param == "http" else place.server.https
    return open_store(place.uri.replace("s3://", "s3a://"), place.options(endpoint_url=url))


def test_what_was_written_is_listed_and_read(store):
    assert store.entries() == []
    store.write("a/one", b"first")
    store.write("a/one", b"second")
    store.write("b", b"")
    assert [(e.name, e.bytes) for e in store.entries()] == [("a/one", 6), ("b", 0)]
    assert [e.name for e in store.entries("a/")] == ["a/one"]
    assert store.stat("a/one").bytes == 6
    assert store.read("a/one") == b"second"
    assert store.read("b") == b""
    assert store.read_range("a/one", 2, 3) == b"con"


def test_what_is_not_there_is_said_so(store):
    store.write("there", b"x")
    for use in (store.stat, store.read, store.open, lambda name: store.read_range(name, 0, 1)):
        with pytest.raises(NotFoundError, match="no such"):
            use("nothing")
    store.delete("nothing")
    store.delete("there")
    assert store.entries() == []


@pytest.mark.parametrize(("start", "length"), [(4, 3), (6, 1), (100, 2)])
def test_a_range_beyond_the_end_is_an_error_never_a_shorter_answer(store, start, length):
    store.write("six", b"012345")
    with pytest.raises(ChangedError):
        store.read_range("six", start, length)


def test_a_name_is_given_once_and_the_same_content_again_is_no_fault(store):
    store.create("manifest", b"mine")
    store.create("manifest", b"mine")
    with pytest.raises(ChangedError, match="other content"):
        store.create("manifest", b"theirs")
    assert store.read("manifest") == b"mine"


def test_of_many_writers_of_one_name_one_wins(store):
    def write(number):
        try:
            store.create("manifest", b"writer %d" % number)
        except ChangedError:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        winners = [number for number in threads.map(write, range(8)) if number is not None]
    assert len(winners) == 1
    assert store.read("manifest") == b"writer %d" % winners[0]
    assert [e.name for e in store.entries()] == ["manifest"]


def test_an_open_file_seeks_and_reads(store):
    data = bytes(range(256)) * 1000
    store.write("file", data)
    with store.open("file") as file:
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert file.read(5) == b""
        file.seek(1000)
        assert file.read(70_000) == data[1000:71_000]
        assert file.tell() == 71_000
        assert file.seek(-4, io.SEEK_CUR) == 70_996
        assert file.read(4) == data[70_996:71_000]


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "", "a\\b"])
def test_no_name_leaves_the_store(store, name):
    for use in (store.read, store.delete, store.open, lambda n: store.write(n, b"")):
        with pytest.raises(StorageError, match="not a name inside"):
            use(name)


def test_a_location_without_bucket_or_of_unknown_scheme_is_refused():
    with pytest.raises(StorageError, match="names no bucket"):
        open_store("s3:///folder")
    with pytest.raises(StorageError, match="gs://"):
        open_store("gs://bucket/folder")
