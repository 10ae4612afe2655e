"""Whole files to and from an object store: in parallel parts, digests compared, never half a file.

upload_file(store, path, name, sha256)                  the object appears whole or not at all
upload_parts(store, name, parts, size)                  the same from memory
download_file(store, name, path, size=..., sha256=...)  the file gets its name when it is right
run_files(store, jobs)                                  a few of these at once
abort_unfinished(store, names)                          what killed uploads left behind
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store.base import DamagedError, Entry, damaged
from lensprep.store.connection import cancel, finish, raise_failed
from lensprep.store.local import atomic_writer, disk_errors
from lensprep.store.ranges import PART_BYTES, Piece
from lensprep.store.remote import BrokenOffError, RemoteStore

logger = logging.getLogger("lensprep.s3")

FILES_AT_ONCE: Final = 4
"""Files under way: their digests are computed side by side. Requests have a separate limit."""
SMALL_PART_BYTES: Final = 200 * 26_624
"""For workers, since a machine has many and each holds a few parts. S3 asks for 5 MiB at least."""
_MOST_PARTS: Final = 10_000

Progress = Callable[[int], None]
"""Called from any thread with the number of bytes just moved."""


def download_file(
    store: RemoteStore,
    name: str,
    path: Path,
    *,
    size: int,
    sha256: str | None,
    progress: Progress | None = None,
) -> None:
    """Download a file in parallel ranges; it gets its name when it is right and on the disk.

    Parameters
    ----------
    name : str
    path : Path
    size : int
        Its size in bytes.
    sha256 : str or None
        Its digest; with None that which is stated with the object, if any.
    progress : callable, optional

    Raises
    ------
    ChangedError
        If the object has another size or digest.
    StorageError
        If the disk is full, or as `fetch`.
    """
    try:
        _download(store, name, path, size, sha256, progress, checked=sha256 is not None)
    except DamagedError as error:
        if not store.connection.plain or sha256 is None:
            raise
        # Altered on the way, or in the store? Reading each part twice tells.
        logger.warning("%s Reading it again.", error)
        _download(store, name, path, size, sha256, None, checked=False)


def _download(
    store: RemoteStore,
    name: str,
    path: Path,
    size: int,
    sha256: str | None,
    progress: Progress | None,
    *,
    checked: bool,
) -> None:
    hashed, answers, arrived = hashlib.sha256(), list[Entry](), deque[Any]()
    slots, threads = store.connection.slots, store.connection.threads
    buffers = store.connection.buffers

    def take() -> None:
        """Write the oldest part; parts arrive in any order but are written in theirs."""
        part, future = arrived.popleft()
        try:
            answers.append(future.result())
            hashed.update(part.view)
            file.write(part.view)
            buffers.append(part.view.obj)
        finally:
            slots.release()
        if progress is not None:
            progress(len(part.view))

    with atomic_writer(path, sync=True) as file:
        try:
            for start in range(0, size, PART_BYTES):
                # Never wait for memory while parts that could be written hold some.
                while not slots.acquire(blocking=not arrived):
                    take()
                view = memoryview(take_memory(store, PART_BYTES))[: min(PART_BYTES, size - start)]
                part = Piece(name, start, view, size, sha256, checked=checked)
                arrived.append((part, threads.submit(store.fill, part)))
            while arrived:
                take()
        finally:
            for _, future in arrived:
                future.cancel()
                slots.release()
        found, where = hashed.hexdigest(), store.locate(name)
        if len({answer.version for answer in answers}) > 1:
            raise ChangedError(f"{where} was replaced while it was read.")
        for digest in [sha256] if sha256 else {answer.sha256 for answer in answers}:
            if digest not in (None, found):
                raise damaged(where, found, str(digest))


def take_memory(store: RemoteStore, size: int) -> bytearray:
    """Memory for a part, reused if there is some of this size.

    Fresh memory for each part would be spread over the heap and add a tenth to a worker's peak.
    """
    try:
        memory = store.connection.buffers.pop()
    except IndexError:
        return bytearray(size)
    return memory if len(memory) == size else bytearray(size)


def give_back(store: RemoteStore, memory: bytes | bytearray, size: int) -> None:
    """Keep memory for another part, if it was taken for one of this size."""
    if isinstance(memory, bytearray) and len(memory) == size:
        store.connection.buffers.append(memory)


def upload_file(
    store: RemoteStore,
    path: Path,
    name: str,
    sha256: str | None = None,
    progress: Progress | None = None,
    part_bytes: int = PART_BYTES,
) -> str:
    """Upload a file, in parallel parts if it is large, unless the name is taken.

    Its digest is computed on the way and stated with the object. The store compares a CRC-32
    of each part, and the object appears only when all parts are there and the digest is right.

    Parameters
    ----------
    path : Path
    name : str
    sha256 : str, optional
        The digest that the file must have.
    progress : callable, optional
    part_bytes : int
        Size of a part.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    ChangedError
        If the local file has another digest, or the name is taken by other content.
    StorageError
        If the file cannot be read, or the store does not let us or does not answer.
    """
    try:
        return _upload_file(store, path, name, sha256, progress, part_bytes)
    except BrokenOffError as error:
        if part_bytes <= SMALL_PART_BYTES:
            raise
        logger.warning("%s Trying smaller parts.", error)
        return _upload_file(store, path, name, sha256, progress, SMALL_PART_BYTES)


def _upload_file(
    store: RemoteStore,
    path: Path,
    name: str,
    sha256: str | None,
    progress: Progress | None,
    part_bytes: int,
) -> str:
    with disk_errors(path, "read"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > part_bytes:
            if sha256 is None:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            step = part_bytes * -(-size // (part_bytes * _MOST_PARTS))
            parts = _hashed_parts(store, file, size, step, path, sha256)
            upload_parts(store, name, parts, size, part_bytes, sha256=sha256, progress=progress)
            return sha256
        data = file.read()
    found = hashlib.sha256(data).hexdigest()
    _check_local(path, found, sha256)
    store.create(name, data)
    if progress is not None:
        progress(len(data))
    return found


def upload_parts(
    store: RemoteStore,
    name: str,
    parts: Iterable[bytes | bytearray],
    size: int,
    part_bytes: int = PART_BYTES,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write an object from memory; a failure leaves no unfinished upload behind.

    Parameters
    ----------
    name : str
    parts : iterable of bytes
        Each but the last of the same size, at least 5 MiB. A bytearray of `part_bytes` is kept by
        `give_back` when it has been sent.
    size : int
        Of all parts, bytes.
    part_bytes : int
    sha256 : str, optional
        Stated with an object of several parts, which is then written only if its name is free;
        without it, an older object is replaced.
    progress : callable, optional

    Raises
    ------
    ChangedError
        If the name is taken by other content.
    StorageError
        If the store does not let us or does not answer.
    """
    if size <= part_bytes:
        store.put(name, b"".join(parts), new=False)
        return
    upload = store.begin_upload(name, sha256)
    futures: list[Future[Any]] = []
    finished, over = False, threading.Event()

    def send(number: int, data: bytes | bytearray) -> Any:
        part = store.put_part(name, upload, number, data, over)
        if progress is not None:
            progress(len(data))
        return part

    def sent(data: bytes | bytearray, _: Future[Any]) -> None:
        give_back(store, data, part_bytes)
        store.connection.slots.release()

    try:
        for number, data in enumerate(parts, 1):
            store.connection.slots.acquire()
            futures.append(store.connection.threads.submit(send, number, data))
            futures[-1].add_done_callback(partial(sent, data))
            raise_failed(futures)
        _complete(store, name, upload, store.connection.results(futures), size, sha256)
        finished = True
    finally:
        if not finished:
            over.set()
            cancel(futures)
            drop_upload(store, name, upload)


def _complete(
    store: RemoteStore,
    name: str,
    upload: str,
    parts: list[Any],
    size: int,
    sha256: str | None,
) -> None:
    """Make the object; if the name is taken, find out whether by the very same content."""
    try:
        store.end_upload(name, upload, parts, new=sha256 is not None)
        return
    except (ChangedError, NotFoundError):
        pass  # taken, or our own upload was complete and only the answer was lost
    where = store.locate(name)
    try:
        entry = store.stat(name)
    except NotFoundError:
        raise StorageError(
            f"The upload of {where} was ended by another process. Is another upload to the same "
            "location running? Run the same command again; finished work is kept."
        ) from None
    if (entry.bytes, entry.sha256) != (size, sha256):
        raise ChangedError(f"{where} already exists, with other content; it is left as it is.")
    logger.warning("%s already exists, with this content", where)
    drop_upload(store, name, upload)


def drop_upload(store: RemoteStore, name: str, upload: str) -> None:
    """Abort an upload that is not to become an object; a failure to do so is only logged."""
    try:
        store.abort_upload(name, upload)
    except NotFoundError:
        pass
    except StorageError as error:
        logger.warning("%s An unfinished upload is left there.", error)


def abort_unfinished(store: RemoteStore, names: Sequence[str] | None = None) -> int:
    """Abort multipart uploads of these files, or of all, that were left; returns how many."""
    mine = [upload for upload in store.list_uploads() if names is None or upload[0] in names]
    for name, upload in mine:
        drop_upload(store, name, upload)
    return len(mine)


def _hashed_parts(
    store: RemoteStore, file: BufferedReader, size: int, step: int, path: Path, sha256: str
) -> Iterator[bytes | bytearray]:
    """A file in parts of equal size, the last one smaller; its digest is compared at the end."""
    digest = hashlib.sha256()
    file.seek(0)
    for _ in range(0, size, step):
        data: bytes | bytearray = take_memory(store, step)
        count = file.readinto(data)
        if count < step:
            data = bytes(data[:count])
        digest.update(data)
        yield data
    _check_local(path, digest.hexdigest(), sha256)


def _check_local(path: Path, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise ChangedError(
            f"{path} is damaged: its SHA-256 begins with {found[:12]}, not {expected[:12]}. Run "
            "`lensprep verify`, and convert again."
        )


def run_files(store: RemoteStore, jobs: Sequence[Callable[[], object]]) -> None:
    """Run transfers of files, a few at once; the first failure or an interrupt ends them all."""
    with ThreadPoolExecutor(FILES_AT_ONCE, "lensprep-files") as threads:
        futures: list[Future[object]] = []
        try:
            futures.extend(threads.submit(job) for job in jobs)
            finish(futures)
        except KeyboardInterrupt:
            store.connection.stop()
            raise
        finally:
            cancel(futures)
            store.connection.buffers.clear()
