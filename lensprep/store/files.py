"""Files and folders that a user names one by one: read, and written whole, locally or in a store.

    read_file("s3://bucket/known.csv")                      bytes
    with local_file(uri) as path: ...                       the file itself, or a temporary copy
    with written_file("s3://bucket/scores.fits") as path:   a draft, moved into place at the end
    with written_folder("s3://bucket/report", "metrics.json") as folder: ...
    check_file(uri), check_folder(uri, "metrics.json")      whether it could be written

Files for a store are first written to the local disk, and sent when they are complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, TemporaryFile
from typing import BinaryIO

from lensprep.errors import NotFoundError, StorageError, size_text
from lensprep.store.base import Entry, Store, member_path
from lensprep.store.local import (
    PARTIAL_SUFFIX,
    LocalStore,
    check_location,
    disk_errors,
    write_atomic,
)
from lensprep.store.options import S3Options
from lensprep.store.ranges import PART_BYTES
from lensprep.store.registry import is_remote, local_path, open_remote, open_store, scheme_of
from lensprep.store.remote import RemoteStore
from lensprep.store.transfer import download_file, drop_upload, run_files, upload_parts

Uri = str | os.PathLike[str]


def split_uri(uri: Uri) -> tuple[str, str]:
    """Folder and name of a file: ``("s3://bucket/a", "b.csv")``.

    Raises
    ------
    StorageError
        If the location names no file, or has a scheme that this version does not read.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if path.name in ("", ".."):
            raise StorageError(f"{uri} names a folder, not a file in it.")
        return str(path.parent), path.name
    folder, _, name = str(uri).rpartition("/")
    if not name or folder.endswith(":/"):
        raise StorageError(
            f"{uri} names no file. Write it like {scheme_of(uri)}://bucket/folder/{name or 'x'}."
        )
    return folder, name


def join_uri(folder: Uri, name: str) -> str:
    """Location of a file in a folder."""
    text = str(folder)
    return f"{text.rstrip('/')}/{name}" if is_remote(text) else str(local_path(text) / name)


def uri_suffix(uri: Uri) -> str:
    """Suffix of a location in lower case, with that before a ``.gz``: ``.csv.gz``."""
    suffixes = PurePosixPath(str(uri).lower()).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def is_within(uri: Uri, folder: Uri) -> bool:
    """Whether a location is a folder, or lies in it."""
    if scheme_of(uri) != scheme_of(folder):
        return False
    if not is_remote(uri):
        return local_path(uri).resolve().is_relative_to(local_path(folder).resolve())
    inner, outer = (str(text).split("://", 1)[1].rstrip("/") + "/" for text in (uri, folder))
    return inner.startswith(outer)


def exists(uri: Uri, options: S3Options | None = None) -> bool:
    """Whether there is such a file."""
    if not is_remote(uri):
        return local_path(uri).is_file()
    folder, name = split_uri(uri)
    return open_store(folder, options).has(name)


def read_file(uri: Uri, options: S3Options | None = None, *, most: int | None = None) -> bytes:
    """A whole file.

    Parameters
    ----------
    uri : str or path
    options : S3Options, optional
        How to reach an object store.
    most : int, optional
        Bytes beyond which it is refused.

    Raises
    ------
    NotFoundError
        If there is none.
    StorageError
        If it cannot be read, or is too long.
    """
    if is_remote(uri):
        folder, name = split_uri(uri)
        store = open_store(folder, options)
        if most is None or store.stat(name).bytes <= most:
            return bytes(store.read(name))
    else:
        path = local_path(uri)
        with disk_errors(uri), path.open("rb") as file:
            data = file.read(-1 if most is None else most + 1)
        if most is None or len(data) <= most:
            return data
    raise StorageError(f"{uri} is longer than {size_text(most)}: it is something else.")


def file_sha256(uri: Uri, options: S3Options | None = None) -> str:
    """SHA-256 of a file, in hexadecimal digits; errors as `read_file`."""
    if is_remote(uri):
        return hashlib.sha256(read_file(uri, options)).hexdigest()
    with disk_errors(uri), local_path(uri).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_sha256(store: Store, name: str) -> str:
    """SHA-256 of a file of a store: as stated with the object, else by reading it."""
    if isinstance(store, LocalStore):
        return file_sha256(member_path(store.root, name))
    return store.stat(name).sha256 or hashlib.sha256(store.read(name)).hexdigest()


@contextmanager
def local_file(
    uri: Uri, options: S3Options | None = None, *, most_bytes: int | None = None
) -> Iterator[Path]:
    """Path at which a file can be read: its own, or that of a copy removed after the block.

    Parameters
    ----------
    uri : str or path
    options : S3Options, optional
    most_bytes : int, optional
        A larger object is refused instead of copied.

    Raises
    ------
    NotFoundError
        If there is none.
    StorageError
        If it cannot be read, or there is no room for a copy in the folder for temporary files.
    """
    if not is_remote(uri):
        path = local_path(uri)
        with disk_errors(uri):
            path.open("rb").close()
        yield path
        return
    folder, name = split_uri(uri)
    store = open_remote(folder, options)
    entry = store.stat(name)
    if most_bytes is not None and entry.bytes > most_bytes:
        raise StorageError(f"{uri} has {entry.bytes:,} bytes; is it the right file?")
    with _temporary(uri) as draft:
        fetch_file(store, entry, draft / name)
        yield draft / name


@contextmanager
def local_folder(
    uri: Uri,
    options: S3Options | None = None,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[Path]:
    """Path at which a folder can be read: its own, or that of a copy removed after the block.

    Parameters
    ----------
    uri : str or path
    options : S3Options, optional
    wanted : callable
        Whether a copy of the file of this name, relative to the folder, is needed.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    StorageError
        If a file cannot be read, or there is no room for the copies.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if not path.is_dir():
            raise NotFoundError(f"{path}: no such folder.")
        yield path
        return
    store = open_remote(str(uri), options)
    entries = store.entries()
    if not entries:
        raise NotFoundError(f"{uri}: no such folder.")
    with _temporary(uri) as draft:
        chosen = [entry for entry in entries if wanted(entry.name)]
        jobs = [partial(fetch_file, store, e, member_path(draft, e.name)) for e in chosen]
        run_files(store, jobs)
        yield draft


def check_file(uri: Uri, options: S3Options | None = None) -> None:
    """Refuse a location where no file could be written, before the work that makes it.

    Raises
    ------
    StorageError
        If a folder has that name, the disk or the store refuses, or there is no such bucket.
    """
    folder, name = split_uri(uri)
    if is_remote(uri):
        store = open_remote(folder, options)
        drop_upload(store, name, store.begin_upload(name))
        return
    path = local_path(uri)
    if path.is_dir():
        raise StorageError(f"{path} is a folder; a file is written here.")
    check_location(path.parent)
    with disk_errors(uri, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()


def check_folder(uri: Uri, mark: str, options: S3Options | None = None) -> None:
    """Refuse a folder that must not be replaced or cannot be written, before the work.

    Parameters
    ----------
    uri : str or path
    mark : str
        Name of the file by which an earlier output of this kind is recognised.

    Raises
    ------
    StorageError
        If it holds anything but an earlier output, or could not be written.
    """
    if not is_remote(uri):
        check_location(local_path(uri))
    store = open_store(uri, options)
    if not store.has(mark) and store.has_any():
        raise StorageError(
            f"{uri} is not empty and holds no {mark} of an earlier run; give --out another folder."
        )
    inside = is_remote(uri) or local_path(uri).is_dir()
    check_file(join_uri(uri, mark) if inside else local_path(uri), options)


@contextmanager
def written_file(uri: Uri, options: S3Options | None = None) -> Iterator[Path]:
    """Draft to write a file to, with its name; it is moved into place if the block succeeds.

    An older file of that name is replaced. After an error nothing has changed.

    Raises
    ------
    StorageError
        If the disk or the store refuses, in the block or at its end.
    """
    folder, name = split_uri(uri)
    if is_remote(uri):
        store = open_remote(folder, options)
        with disk_errors(uri, "written"), _temporary(uri) as draft:
            yield draft / name
            send_file(store, draft / name, name)
        return
    path = local_path(uri)
    with disk_errors(uri, "written"), _draft_in(path.parent, name) as draft:
        yield draft / name
        (draft / name).replace(path)


@contextmanager
def written_folder(uri: Uri, mark: str, options: S3Options | None = None) -> Iterator[Path]:
    """Draft folder to write into; it is moved into place if the block succeeds.

    An earlier output of this kind is replaced as a whole (see `check_folder`); the file ``mark`` is
    written last.

    Raises
    ------
    StorageError
        If the disk or the store refuses, or the folder holds anything else.
    """
    if is_remote(uri):
        with disk_errors(uri, "written"), _temporary(uri) as draft:
            yield draft
            check_folder(uri, mark, options)
            _send_folder(open_remote(str(uri), options), draft, mark)
        return
    path = local_path(uri).absolute()
    parent = path if path.is_dir() else path.parent
    with disk_errors(uri, "written"), _draft_in(parent, path.name) as draft:
        new = draft / "new"
        new.mkdir()
        yield new
        check_folder(path, mark)
        if path.is_dir():
            _replace_content(path, draft, mark)
        else:
            new.rename(path)


def _replace_content(path: Path, draft: Path, mark: str) -> None:
    """Replace the content of a folder, which may be a mount point that cannot be renamed.

    A folder with the mark is complete, so the mark is removed first and written last.
    """
    old = draft / "old"
    old.mkdir()
    before = sorted(path.iterdir(), key=lambda entry: entry.name != mark)
    after = sorted((draft / "new").iterdir(), key=lambda entry: entry.name == mark)
    moves = [(entry, old / entry.name) for entry in before if entry != draft]
    moves += [(entry, path / entry.name) for entry in after]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            target.rename(source)
        raise


def send_file(store: Store, path: Path, name: str) -> None:
    """Write a local file into a store, replacing an older one.

    Raises
    ------
    StorageError
        If the file cannot be read, or the store refuses.
    """
    with disk_errors(path), path.open("rb") as file:
        send_open_file(store, file, name)


def send_open_file(store: Store, file: BinaryIO, name: str) -> None:
    """The same for an open file: all that it holds now, though it may grow meanwhile."""
    file.seek(0)
    if not isinstance(store, RemoteStore):
        store.write(name, file.read())
        return
    size = os.fstat(file.fileno()).st_size
    sizes = (min(PART_BYTES, size - start) for start in range(0, max(size, 1), PART_BYTES))
    upload_parts(store, name, map(file.read, sizes), size)


def fetch_file(store: Store, entry: Entry, path: Path) -> None:
    """Write a file of a store, as it was listed, to a local disk; it appears whole or not at all.

    Raises
    ------
    ChangedError
        If it was replaced since.
    StorageError
        If the store or the disk refuses.
    """
    if isinstance(store, RemoteStore):
        download_file(store, entry.name, path, size=entry.bytes, sha256=None)
    else:
        write_atomic(path, bytes(store.read(entry.name)))


def _send_folder(store: RemoteStore, draft: Path, mark: str) -> None:
    """Send all files, the mark last; then remove those of an earlier output."""
    old = {entry.name for entry in store.entries()}
    names = {p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file()}
    run_files(store, [
        partial(send_file, store, draft / name, name) for name in sorted(names - {mark})
    ])  # fmt: skip
    send_file(store, draft / mark, mark)
    for name in sorted(old - names):
        store.delete(name)


@contextmanager
def _temporary(uri: Uri) -> Iterator[Path]:
    """A temporary folder, removed after the block."""
    with disk_errors(uri, "kept on the local disk"):
        folder = TemporaryDirectory(prefix="lensprep-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


@contextmanager
def _draft_in(parent: Path, name: str) -> Iterator[Path]:
    """A hidden temporary folder next to the output, on the same disk."""
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        PARTIAL_SUFFIX, f".{name[:40]}.", parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
