"""Another kind of store is one class and one line: a whole path through one that is not S3."""

from __future__ import annotations

import hashlib
import shutil
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lensprep.convert.config import ConvertConfig
from lensprep.convert.conversion import convert
from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.errors import ChangedError, ConfigError, NotFoundError, StorageError
from lensprep.inspection.verify import verify
from lensprep.store import (
    PART_BYTES,
    Entry,
    LocalStore,
    RemoteStore,
    S3Options,
    is_remote,
    join_uri,
    local_path,
    member_path,
    open_remote,
    open_store,
    read_file,
    registry,
    split_uri,
    written_file,
)
from lensprep.store.connection import Connection
from lensprep.store.ranges import Answer
from lensprep.store.transfer import SMALL_PART_BYTES
from lensprep.transfer import download, upload
from lenstrain.data import StampLoader
from tests.phase4c import tiny_table, write_tree

CONFIG = ConvertConfig(shard_rows=20, max_reject_rate=1.0)


class FolderStore(RemoteStore):
    """``folder://home/name``: objects as files of a local folder."""

    home = Path()
    _lock = threading.Lock()
    _connections: dict[S3Options, Connection] = {}  # noqa: RUF012

    def __init__(self, uri, options=None):
        options = options or S3Options()
        connection = self._connections.get(options)
        if connection is None or connection.stopped:
            connection = self._connections[options] = Connection(options, plain=False)
        super().__init__(uri.rstrip("/"), options, connection)
        self.files = LocalStore(self.home / self.uri.removeprefix("folder://"))
        self.parts = self.home / ".parts"

    @property
    def endpoint(self):
        return str(self.home)

    def list_once(self, prefix):
        return [self.stat(entry.name) for entry in self.files.entries(prefix)]

    def stat(self, name):
        if not self.files.has(name):
            raise NotFoundError(f"{self.locate(name)}: no such object.")
        digest = hashlib.sha256(self.files.read(name)).hexdigest()
        return Entry(name, self.files.stat(name).bytes, digest, digest)

    def has_any(self):
        return bool(self.files.entries())

    def get(self, name, start, stop, version):
        entry = self.stat(name)
        if version not in (None, entry.version):
            raise ChangedError(f"{self.locate(name)} was replaced while it was read.")
        stop = min(stop, entry.bytes)
        if stop <= start:
            return Answer(entry, None, None)
        return Answer(entry, (start, stop), FileBody(self.files.open(name), start, stop))

    def get_tail(self, name, length):
        size = self.stat(name).bytes
        return self.get(name, max(0, size - length), size, None)

    def put(self, name, data, *, new):
        with self._lock:
            if new and self.files.has(name):
                raise ChangedError(f"{self.locate(name)} is there.")
            self.files.write(name, bytes(data))

    def delete(self, name):
        self.files.delete(name)

    def begin_upload(self, name, sha256=None):
        folder = self.parts / hashlib.sha256(self.locate(name).encode()).hexdigest()
        folder.mkdir(parents=True)
        (folder / "name").write_text(name)
        return folder.name

    def put_part(self, name, upload, number, data, over):
        (self.parts / upload / f"{number}").write_bytes(data)
        return number

    def end_upload(self, name, upload, parts, *, new):
        folder = self.parts / upload
        self.put(name, b"".join((folder / f"{n}").read_bytes() for n in parts), new=new)
        shutil.rmtree(folder)

    def abort_upload(self, name, upload):
        if not (self.parts / upload).exists():
            raise NotFoundError(upload)
        shutil.rmtree(self.parts / upload)

    def list_uploads(self):
        return [(p.read_text(), p.parent.name) for p in self.parts.glob("*/name")]


class FileBody:
    def __init__(self, file, start, stop):
        self.file, self.left = file, stop - start
        file.seek(start)

    def readinto(self, view):
        count = self.file.readinto(view[: self.left])
        self.left -= count
        return count

    def interrupt(self):
        self.file.close()

    def close(self):
        self.file.close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._STORES, "folder", FolderStore)
    monkeypatch.setattr(FolderStore, "home", tmp_path / "home")
    return tmp_path / "home"


def pixels_by_position(place):
    with closing(StampLoader(place, split="train", batch_size=8)) as loader:
        return {int(i): p for b in loader for i, p in zip(b.index, b.pixels.numpy(), strict=True)}


def test_a_dataset_is_made_checked_read_and_copied_in_a_store_of_another_kind(home, tmp_path):
    tree = write_tree(tmp_path / "src", tiny_table(120), files_per_split=2)
    shutil.copytree(tree, home / "bucket" / "src")
    uri = "folder://bucket/lenses"
    made = convert("folder://bucket/src", uri, CONFIG, workers=1)
    assert made["accepted"] == 120
    assert verify(uri, workers=1)["faults"] == []

    far = pixels_by_position(uri)
    download(uri, str(tmp_path / "copy"))
    near = pixels_by_position(tmp_path / "copy")
    assert far.keys() == near.keys() != set()
    assert all(np.array_equal(far[i], near[i]) for i in far)

    sent = upload(str(tmp_path / "copy"), "folder://bucket/again")
    assert sent["dataset_id"] == made["dataset_id"]
    assert open_remote("folder://bucket/again").list_uploads() == []


def test_files_larger_than_a_part_go_and_come_whole(home):
    data = np.random.default_rng(0).bytes(PART_BYTES + 5)
    with written_file("folder://bucket/a/b.bin") as path:
        path.write_bytes(data)
    assert read_file("folder://bucket/a/b.bin") == data
    assert split_uri("folder://bucket/b.bin") == ("folder://bucket", "b.bin")
    assert join_uri("folder://bucket/a/", "b") == "folder://bucket/a/b"


def test_what_is_said_of_schemes_comes_from_the_registry(home):
    assert all(map(is_remote, ("folder://bucket/x", "s3://bucket/x", "s3a://bucket/x")))
    with pytest.raises(StorageError, match="gs:// is not read; local paths and s3://, folder://"):
        local_path("gs://bucket/x")
    with pytest.raises(StorageError, match="lacks a slash: write folder://bucket"):
        local_path("folder:/bucket")
    with pytest.raises(StorageError, match="a local path is needed"):
        local_path("folder://bucket/x")
    with pytest.raises(ConfigError, match="is not in an object store"):
        open_remote("/a/folder")
    assert isinstance(open_store("/a/folder"), LocalStore)
    assert member_path(Path("a"), "b") == Path("a/b")


def test_parts_hold_whole_records():
    """So a part can be filled with records; the store itself knows nothing of them."""
    assert (PART_BYTES, SMALL_PART_BYTES) == (512 * RECORD_STRIDE, 200 * RECORD_STRIDE)
