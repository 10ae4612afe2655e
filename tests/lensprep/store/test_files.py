"""Single files and folders keep the same promises on a disk and in an object store."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import NotFoundError, StorageError
from lensprep.store import (
    PART_BYTES,
    LocalStore,
    check_file,
    check_folder,
    exists,
    file_sha256,
    join_uri,
    local_file,
    local_folder,
    open_store,
    read_file,
    split_uri,
    uri_suffix,
    written_file,
    written_folder,
)
from lensprep.store.transfer import abort_unfinished


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path, monkeypatch):
    """A folder's location and how to reach it."""
    if request.param == "local":
        return str(tmp_path / "place"), None
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    s3 = request.getfixturevalue("s3")
    return s3.uri, s3.options()


def break_off(draft, write):
    with draft as path:
        write(path)
        raise ZeroDivisionError


def fill_disk(fault):
    if fault != "pyarrow":
        raise fault
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    # By its path pyarrow would remove it after the failure.
    with pa.OSFile("/dev/full", "wb") as full:
        pq.write_table(pa.table({"a": range(100_000)}), full)


def names(uri, options):
    return [entry.name for entry in open_store(uri, options).entries()]


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("s3://bucket/a/b.csv", "s3://bucket/a", "b.csv"),
        ("s3a://bucket/b.csv", "s3a://bucket", "b.csv"),
        ("a/b.csv", "a", "b.csv"),
        ("b.csv", ".", "b.csv"),
        ("file:///a/b.csv", "/a", "b.csv"),
        (Path("/a/b c.csv"), "/a", "b c.csv"),
    ],
)
def test_a_location_is_a_folder_and_a_name(uri, folder, name):
    assert split_uri(uri) == (folder, name)
    assert split_uri(join_uri(folder, name)) == (folder, name)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/a/", "s3://", "/", "..", "ftp://h/a"])
def test_what_names_no_file_is_refused(uri):
    with pytest.raises(StorageError):
        split_uri(uri)


def test_a_location_that_became_a_path_is_refused_and_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (split_uri, read_file, check_file, open_store, lambda p: check_folder(p, "mark")):
        with pytest.raises(StorageError, match="lacks a slash"):
            use(Path("s3://bucket/x.csv"))
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_is_in_small_letters_and_knows_gzip():
    assert uri_suffix("s3://b/x.CSV.gz") == ".csv.gz"
    assert uri_suffix("a.b/x") == ""
    assert uri_suffix("J12.5+3.FITS") == ".fits"


@pytest.mark.parametrize("size", [0, 10, PART_BYTES + 1])
def test_what_was_written_is_read_and_replaced(place, size):
    folder, options = place
    uri = join_uri(folder, "sub/x.bin")
    data = os.urandom(size)
    for content in (b"old", data):
        with written_file(uri, options) as path:
            assert path.name == "x.bin"
            path.write_bytes(content)
            assert exists(uri, options) == (content == data)
    assert read_file(uri, options) == data
    with local_file(uri, options) as path:
        assert path.name == "x.bin"
        assert path.read_bytes() == data
    assert names(folder, options) == ["sub/x.bin"]


def test_after_an_error_nothing_has_changed(place):
    folder, options = place
    uri = join_uri(folder, "x.bin")
    with written_file(uri, options) as path:
        path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        break_off(written_file(uri, options), lambda path: path.write_bytes(b"new"))
    assert read_file(uri, options) == b"old"
    assert names(folder, options) == ["x.bin"]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), "pyarrow"])
def test_a_full_disk_in_the_block_is_one_line(place, fault):
    folder, options = place
    draft = written_file(join_uri(folder, "x.bin"), options)
    with pytest.raises(StorageError, match=r"x\.bin could not be written: .*[Nn]o space") as caught:
        break_off(draft, lambda path: fill_disk(fault))
    assert "\n" not in str(caught.value)
    assert names(folder, options) == []


def test_a_digest_is_that_of_the_bytes_wherever_they_lie(place):
    folder, options = place
    uri = f"{folder}/scores.bin"
    with written_file(uri, options) as path:
        path.write_bytes(b"abc")
    assert file_sha256(uri, options) == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(NotFoundError):
        file_sha256(f"{folder}/none.bin", options)


def test_what_is_not_there_is_said_so(place):
    folder, options = place
    uri = join_uri(folder, "nothing.csv")
    assert not exists(uri, options)
    for use in (read_file, lambda *a: local_file(*a).__enter__()):
        with pytest.raises(NotFoundError, match=r"nothing\.csv.*no such"):
            use(uri, options)
    with pytest.raises(NotFoundError, match="no such folder"), local_folder(folder, options):
        pass


def test_a_folder_is_replaced_whole_and_only_by_its_kind(place):
    folder, options = place
    for files in (("old", "both", "mark"), ("new", "both", "sub/deep", "mark")):
        check_folder(folder, "mark", options)
        with written_folder(folder, "mark", options) as draft:
            for name in files:
                (draft / name).parent.mkdir(exist_ok=True)
                (draft / name).write_text(f"{name} of {len(files)}")
    assert names(folder, options) == ["both", "mark", "new", "sub/deep"]
    assert read_file(join_uri(folder, "both"), options) == b"both of 4"
    with local_folder(folder, options) as path:
        assert (path / "sub/deep").read_text() == "sub/deep of 4"
    with pytest.raises(StorageError, match="holds no another"):
        check_folder(folder, "another", options)
    with pytest.raises(ZeroDivisionError):
        break_off(
            written_folder(folder, "mark", options), lambda draft: (draft / "mark").write_text("x")
        )
    assert names(folder, options) == ["both", "mark", "new", "sub/deep"]


def test_a_folder_that_cannot_be_renamed_is_filled_in_place(tmp_path):
    """Such as a mount point: another process may hold it open, too."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    inode = folder.stat().st_ino
    for text in ("one", "two"):
        with written_folder(folder, "mark") as draft:
            (draft / "mark").write_text(text)
    assert folder.stat().st_ino == inode
    assert [entry.name for entry in folder.iterdir()] == ["mark"]
    assert (folder / "mark").read_text() == "two"


def test_a_copy_of_a_folder_holds_what_is_wanted(s3):
    store = s3.store()
    for name in ("checkpoints/best.pt", "checkpoints/last.pt", "config.toml"):
        store.write(name, name.encode())
    with local_folder(s3.uri, s3.options(), wanted=lambda name: name != "checkpoints/last.pt") as p:
        assert [entry.name for entry in LocalStore(p).entries()] == [
            "checkpoints/best.pt",
            "config.toml",
        ]
    assert not p.exists()


def test_a_place_is_tried_before_the_work_and_nothing_is_left(place):
    folder, options = place
    check_file(join_uri(folder, "x.bin"), options)
    check_folder(folder, "mark", options)
    assert names(folder, options) == []
    assert options is None or abort_unfinished(open_store(folder, options)) == 0


def test_a_store_that_would_refuse_is_told_before(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(StorageError, match=r"x\.bin"):
        check_file(f"{s3.uri}/x.bin", s3.options())


def test_a_disk_that_would_refuse_is_told_before(tmp_path):
    (tmp_path / "file").touch()
    for place, what in (
        (tmp_path / "file" / "x", "file is a file; a folder is needed here"),
        (tmp_path / "file" / "y" / "x", "file is a file, so .*y cannot be created"),
        ("/proc/x", "could not be written"),
    ):
        with pytest.raises(StorageError, match=what):
            check_file(place)
    with pytest.raises(StorageError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(StorageError, match="is a file"):
        check_folder(tmp_path / "file", "mark")
