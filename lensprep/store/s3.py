"""A folder in an object store: ranged, parallel reads and conditional, checked writes.

    store = S3Store("s3://bucket/lenses", S3Options(...))      see `lensprep.store.local.Store`
    store.fetch([Piece("train/train-000000.tar", start, view)])   many ranges at once, into memory
    store.put_file(path, name, sha256)     a file in parts; the object appears whole or not at all
    store.get_file(name, path, size=..., sha256=...)          an object in ranges, as a whole file

What boto3 does (pool, signatures, retries of requests) is left to it. What it lacks is here: a
body that breaks off is continued by a range of the same version (If-Match), and an answer that was
lost is told from a refusal by looking at what is there. No object is ever replaced unless asked.

Over plain HTTP nothing tells whether bytes came as they were sent: a range has no checksum in S3
(only one that is just a part as it was uploaded, and not with every store). So where no digest is
known, what is read is read twice, and taken when two readings in turn are alike.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import re
import socket
import threading
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.errors import ChangedError, NotFoundError, StorageError
from lensprep.store.local import Entry, member_name
from lensprep.store.s3client import (
    WAKE_SECONDS,
    Connection,
    S3Options,
    Watcher,
    clear_errors,
    connect,
    parse_s3,
)

if TYPE_CHECKING:
    from lensprep.store.s3file import S3File

__all__ = ["PART_BYTES", "Piece", "S3Options", "S3Store"]

logger = logging.getLogger("lensprep.s3")

PART_BYTES: Final = 512 * RECORD_STRIDE
"""Bytes of one request: 512 records, 13 MiB. AWS advises 8 to 16 MB, reads in the parts written."""
_MOST_PARTS: Final = 10_000
LEAST_PART_BYTES: Final = 5 << 20
"""S3 takes no smaller part, but for the last one of an object."""
_LARGE_TRIES: Final = 3
"""Times that a request breaks off before smaller ones are tried, if there can be any."""
_CHUNK: Final = 1 << 20
"""Bytes taken from a socket at once: with boto3's 64 KiB a core moves a third as much."""
DIGEST_KEY: Final = "sha256"
"""Metadata of every object written here."""

Progress = Callable[[int], None]
"""Told how many bytes more have been moved."""
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of an object and the memory that it goes to."""

    name: str
    start: int
    view: memoryview | Scatter
    """Writable, one byte an item; its length is that of the range."""
    bytes: int | None = None
    """Size that the whole object must have."""
    sha256: str | None = None
    """Digest that must be stated with the object, if any is."""
    version: str | None = None
    """ETag that the object must have."""
    checked: bool = False
    """Who reads it compares the bytes with a digest: they need not be read twice over HTTP."""


class BrokenOffError(StorageError):
    """A request with content broke off again and again; a smaller one may pass."""


class Scatter:
    """Memory in several places that is filled as if it were one."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = list(views)
        self._ends = list(accumulate(len(view) for view in views))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, part: slice) -> memoryview:
        """As much of the part as lies in one place: not nothing, but less than asked for."""
        number = bisect_right(self._ends, part.start)
        view = self._views[number]
        before = self._ends[number] - len(view)
        return view[part.start - before : part.stop - before]


class Reception:
    """A range on its way, as another thread sees it; `S3Store.fill` tells it what happens."""

    def __init__(self) -> None:
        self.stopped = False
        self._body: Any = None

    def began(self, entry: Entry, body: Any) -> None:
        """The store has answered."""
        self._body = body
        if self.stopped:
            self.stop()

    def moved(self, done: int) -> None:
        """So many bytes of the range have come."""

    def stop(self) -> None:
        """Break the connection: a thread that waits for its bytes wakes up at once."""
        self.stopped = True
        connection = getattr(getattr(self._body, "_raw_stream", None), "_connection", None)
        sock = getattr(connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class S3Store:
    """A folder in an object store.

    Parameters
    ----------
    uri : str
        ``s3://bucket/folder``; ``s3a://`` is the same.
    options : S3Options, optional

    Raises
    ------
    StorageError
        If the location names no bucket, or the profile does not exist.
    """

    def __init__(self, uri: str, options: S3Options | None = None) -> None:
        self.bucket, self.prefix = parse_s3(uri)
        self.uri = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.options = options or S3Options()
        self.connection: Connection = connect(self.options)
        self.client = self.connection.client

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, S3Options]]:
        """A copy in another process connects there."""
        return type(self), (self.uri, self.options)

    def key(self, name: str) -> str:
        """Key of a file in the bucket."""
        pure = str(member_name(self.uri, name))
        return f"{self.prefix}/{pure}" if self.prefix else pure

    def locate(self, name: str) -> str:
        """URI of a file."""
        return f"s3://{self.bucket}/{self.key(name)}"

    def entries(self, prefix: str = "") -> list[Entry]:
        """Files whose names begin with ``prefix``, sorted by name.

        Over plain HTTP they are listed until two listings in turn are alike. Where somebody writes
        meanwhile, and none are, it is what most of them have.
        """
        found = [self._list(prefix)]
        if not self.connection.plain:
            return found[0]
        while len(found) < self.options.attempts:
            found.append(self._list(prefix))
            if found[-1] == found[-2]:
                return found[-1]
        names = Counter(entry.name for listing in found for entry in listing)
        votes = Counter(entry for listing in found for entry in listing)
        best = {entry.name: entry for entry, _ in reversed(votes.most_common())}
        return [best[name] for name in sorted(best) if 2 * names[name] > len(found)]

    def _list(self, prefix: str) -> list[Entry]:
        base = f"{self.prefix}/" if self.prefix else ""
        pages = self.client.get_paginator("list_objects_v2")
        found = []
        with clear_errors("list", self.uri):
            for page in pages.paginate(Bucket=self.bucket, Prefix=base + prefix):
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(base)
                    if name and not name.endswith("/"):  # consoles make such keys as folders
                        found.append(Entry(name, item["Size"], item["ETag"]))
        return sorted(found, key=lambda entry: entry.name)

    def stat(self, name: str) -> Entry:
        """Size, ETag and stated digest of a file."""
        with clear_errors("read", self.locate(name)):
            answer = self.client.head_object(Bucket=self.bucket, Key=self.key(name))
        digest = answer.get("Metadata", {}).get(DIGEST_KEY)
        return Entry(name, answer["ContentLength"], answer["ETag"], digest)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.stat(name)
        except NotFoundError:
            return False
        return True

    def has_any(self) -> bool:
        """Whether there is anything in this folder."""
        base = f"{self.prefix}/" if self.prefix else ""
        with clear_errors("list", self.uri):
            page = self.client.list_objects_v2(Bucket=self.bucket, Prefix=base, MaxKeys=1)
        return bool(page.get("Contents"))

    # ------------------------------------------------------------------ reading

    def read(self, name: str, sha256: str | None = None) -> bytearray:
        """A whole file; one request if it is not larger than a part.

        Over plain HTTP it is read until it has the digest `sha256`, or two readings in turn are
        alike: that is what is there, whatever its digest.
        """

        def is_right(found: tuple[bytearray, Entry]) -> bool:
            return sha256 is not None and hashlib.sha256(found[0]).hexdigest() == sha256

        return self._agreed(self.locate(name), lambda: self._read_once(name), is_right)[0]

    def _read_once(self, name: str) -> tuple[bytearray, Entry]:
        first = memoryview(bytearray(PART_BYTES))
        head = self.fill(Piece(name, 0, first, checked=True), short=True)
        if head.bytes <= PART_BYTES:
            return bytearray(first[: head.bytes]), head
        out = bytearray(head.bytes)
        view = memoryview(out)
        view[:PART_BYTES] = first
        rest = view[PART_BYTES:]
        self.fetch([Piece(name, PART_BYTES, rest, head.bytes, None, head.version, checked=True)])
        return out, head

    def _agreed(
        self,
        where: str,
        read: Callable[[], _Found],
        is_right: Callable[[_Found], bool] = lambda _: False,
    ) -> _Found:
        """What is right, or two readings in turn give alike; over TLS one is enough."""
        found = read()
        if not self.connection.plain or is_right(found):
            return found
        for _ in range(self.options.attempts):
            again = read()
            if again == found or is_right(again):
                return again
            logger.warning("%s came otherwise a second time; reading it again", where)
            found = again
        raise StorageError(
            f"{where} came otherwise each of {self.options.attempts} times: the network alters "
            "what it carries. Use https://, or have the network mended."
        )

    def read_range(self, name: str, start: int, length: int) -> bytearray:
        """Exactly ``length`` bytes from ``start``."""
        out = bytearray(length)
        self.fetch([Piece(name, start, memoryview(out))])
        return out

    def read_version(
        self, entry: Entry, start: int, stop: int, *, checked: bool = False
    ) -> bytearray:
        """Bytes ``start`` to ``stop`` of just that version of a file; see `Piece.checked`."""
        out = bytearray(stop - start)
        view = memoryview(out)
        self.fetch([Piece(entry.name, start, view, entry.bytes, None, entry.version, checked)])
        return out

    def read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        """The last ``length`` bytes of a file, or all of it, and what it is."""
        return self._agreed(self.locate(name), lambda: self._read_tail(name, length))

    def _read_tail(self, name: str, length: int) -> tuple[bytearray, Entry]:
        where = self.locate(name)
        with clear_errors("read", where):
            try:
                response = self.client.get_object(
                    Bucket=self.bucket, Key=self.key(name), Range=f"bytes=-{length}"
                )
            except self.client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 416:
                    raise
                return bytearray(), self.stat(name)  # an empty object has no range
        entry = _entry(name, response)
        expected = min(length, entry.bytes)
        if not _is_range(response, entry.bytes - expected, entry.bytes):
            response["Body"].close()
            entry = self.stat(name)
            return self.read_version(entry, max(0, entry.bytes - length), entry.bytes), entry
        out = bytearray()
        try:
            for chunk in _chunks(response["Body"]):
                out += chunk
        except _body_faults() as error:
            fault = type(error).__name__
            logger.warning("%s: the end broke off (%s); reading it again", where, fault)
        if len(out) != expected:
            out = self.read_version(entry, entry.bytes - expected, entry.bytes)
        return out, entry

    def open(self, name: str) -> S3File:
        """A seekable binary file object that reads ranges as they are asked for."""
        from lensprep.store.s3file import S3File

        return S3File(self, name)

    def fetch(self, pieces: Sequence[Piece]) -> None:
        """Read many ranges in parallel, long ones in parts.

        Raises
        ------
        NotFoundError
            If an object is not there.
        ChangedError
            If an object has not the size, digest or version that it must have, ends before a
            range, or was replaced in between.
        StorageError
            If the store does not let us, or does not answer.
        """
        parts = [part for piece in pieces if piece.view for part in _split(piece)]
        if len(parts) == 1:
            self.fill(parts[0])
            return
        futures = [self.connection.threads.submit(self.fill, part) for part in parts]
        answers = results(futures, self.connection.watcher)
        versions: dict[str, str | None] = {}
        for answer in answers:
            if versions.setdefault(answer.name, answer.version) != answer.version:
                raise ChangedError(f"{self.locate(answer.name)} was replaced while it was read.")

    def fill(self, piece: Piece, *, short: bool = False, watch: Reception | None = None) -> Entry:
        """Read one range in one request, and in more where the body breaks off.

        With ``short`` the object may end before the range does. Another thread may `watch` a range
        that is `checked`, and stop it: then it ends in a StorageError.
        """
        if piece.checked or not self.connection.plain:
            return self._receive_range(piece, short, watch)

        def read() -> tuple[Entry, int]:
            entry = self._receive_range(piece, short, watch)
            return entry, _crc32(piece.view[: max(0, entry.bytes - piece.start)])

        where = f"{self.locate(piece.name)}, bytes from {piece.start}"
        return self._agreed(where, read)[0]

    def _receive_range(self, piece: Piece, short: bool, watch: Reception | None) -> Entry:
        view, done, breaks, unlike = piece.view, 0, 0, ""
        version = piece.version
        size = len(view)
        while True:
            self.require_going(piece.name)
            start = piece.start + done
            response = self._get(piece.name, start, piece.start + size, version)
            entry = _entry(piece.name, response)
            before, fault, repeated = done, "", False
            if response["Body"] is not None and not _is_range(
                response, start, min(piece.start + size, entry.bytes)
            ):
                fault = "another range came than was asked for, or a page that is no object"
            elif version not in (None, entry.version):
                fault = "another version came than was asked for"
            else:
                try:
                    self._compare(piece, entry, size, short)
                except ChangedError as error:
                    # Said once, it may be the answer to another request.
                    repeated, unlike = str(error) == unlike, str(error)
                    fault = unlike.rstrip(".")
            if fault:
                if response["Body"] is not None:
                    response["Body"].close()
                if repeated:
                    raise ChangedError(unlike)
                breaks += 1
                self._tell_break(piece, done, size, breaks, fault)
                continue
            if short:
                size = min(size, entry.bytes - piece.start)
            version = entry.version
            if watch is not None:
                watch.began(entry, response["Body"])
            try:
                for count in _receive(response["Body"], view, done, size):
                    done += count
                    self.require_going(piece.name)
                    if watch is not None:
                        watch.moved(done)
                if done == size:
                    return entry
                fault = "the body is too short"
            except _body_faults() as error:
                fault = type(error).__name__
            if watch is not None and watch.stopped:
                raise StorageError(f"{self.locate(piece.name)}: reading was stopped.")
            breaks = breaks + 1 if done == before else 1
            self._tell_break(piece, done, size, breaks, fault)

    def require_going(self, name: str) -> None:
        """Raise if nothing more is to be moved."""
        if self.connection.watcher.stopped:
            raise StorageError(f"{self.locate(name)}: stopped.")

    def _tell_break(self, piece: Piece, done: int, size: int, breaks: int, fault: str) -> None:
        """Log a body that broke off and pause; give up if nothing came many times."""
        where = f"{self.locate(piece.name)}, bytes {piece.start} to {piece.start + size}"
        if breaks >= self.options.attempts or self.connection.watcher.stopped:
            raise StorageError(
                f"{where}: nothing came in {breaks} tries in turn ({fault}). Check the network, "
                "and run the same command again; what is done is kept."
            )
        logger.warning("%s: broke off after %d (%s); going on from there", where, done, fault)
        self.connection.watcher.pause(random.random() * min(5.0, 0.05 * 2**breaks))

    def _get(self, name: str, start: int, stop: int, version: str | None) -> Mapping[str, Any]:
        """Ask for bytes ``start`` to ``stop``; of an empty object there is no range."""
        condition = {"IfMatch": version} if version is not None else {}
        with clear_errors("read", self.locate(name)):
            try:
                return dict(
                    self.client.get_object(
                        Bucket=self.bucket,
                        Key=self.key(name),
                        Range=f"bytes={start}-{stop - 1}",
                        **condition,
                    )
                )
            except self.client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 416:
                    raise
        with clear_errors("read", self.locate(name)):
            answer = self.client.head_object(Bucket=self.bucket, Key=self.key(name), **condition)
        if start and answer["ContentLength"] < stop:
            raise ChangedError(
                f"{self.locate(name)} has {answer['ContentLength']} bytes, not {stop} or more."
            )
        return {**answer, "Body": None}

    def _compare(self, piece: Piece, entry: Entry, size: int, short: bool) -> None:
        """An object must be the one that the reader has in mind."""
        where = self.locate(piece.name)
        if not short and entry.bytes < piece.start + size:
            end = piece.start + size
            raise ChangedError(f"{where} has {entry.bytes} bytes, not {end} or more.")
        if piece.bytes is not None and entry.bytes != piece.bytes:
            raise ChangedError(f"{where} has {entry.bytes} bytes where {piece.bytes} are stated.")
        if piece.sha256 is not None and entry.sha256 not in (None, piece.sha256):
            raise ChangedError(
                f"{where} holds other content than stated (its SHA-256 begins with "
                f"{str(entry.sha256)[:12]}, not {piece.sha256[:12]})."
            )

    # ------------------------------------------------------------------ writing

    def write(self, name: str, data: bytes) -> None:
        """Write a small file in place of an older one."""
        self.put(name, data, {})

    def create(self, name: str, data: bytes) -> None:
        """Write a small file only if there is none: of two writers one wins.

        Raises
        ------
        ChangedError
            If there is one with other content. One with the same content is as good as ours: the
            answer to our own write may have been lost.
        """
        try:
            self.put(name, data, {"IfNoneMatch": "*"})
        except ChangedError:
            if self.read(name) != data:
                raise ChangedError(
                    f"{self.locate(name)} is there already, with other content; it is left as it "
                    "is."
                ) from None
            logger.warning("%s is there already, with this content", self.locate(name))

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with clear_errors("remove", self.locate(name)):
            self.client.delete_object(Bucket=self.bucket, Key=self.key(name))

    def put(
        self, name: str, data: bytes, condition: Mapping[str, str], *, large: bool = False
    ) -> None:
        """Write an object in one request; see `send`."""
        answer = self.send(
            name,
            lambda: self.client.put_object(
                Bucket=self.bucket,
                Key=self.key(name),
                Body=data,
                ChecksumCRC32=crc32_text(data),
                Metadata={DIGEST_KEY: hashlib.sha256(data).hexdigest()},
                **condition,
                **self.options.put_arguments(),
            ),
            large=large,
        )
        self.confirm(name, data, answer)

    def send(
        self,
        name: str,
        request: Callable[[], _Found],
        *,
        large: bool = False,
        over: threading.Event | None = None,
    ) -> _Found:
        """Make a request with content, again if its connection breaks.

        Tries are counted from the last request, of any thread, that the store took. One that broke
        off is made again alone, so that it has the whole line.

        Parameters
        ----------
        name : str
        request : callable
        large : bool
            Give up sooner, as smaller requests can do the same.
        over : Event, optional
            Set when it is of no use any more.

        Raises
        ------
        BrokenOffError
            If it broke off too often.
        StorageError
            As everywhere; if it is of no use any more.
        """
        from botocore.exceptions import EndpointConnectionError, HTTPClientError, ReadTimeoutError

        connection, where = self.connection, self.locate(name)
        breaks = broke_off = 0
        with clear_errors("write", where):
            while True:
                self.require_going(name)
                if over is not None and over.is_set():
                    raise StorageError(f"{where}: stopped.")
                accepted = connection.accepted
                try:
                    alone = connection.narrow if broke_off else nullcontext()
                    with alone, connection.watcher.once(breaks + 1):
                        answer = request()
                    connection.accepted += 1
                    return answer
                except HTTPClientError as error:
                    if not connection.watcher.may_pass(error):
                        raise
                    fault = type(error).__name__
                    breaks = breaks + 1 if connection.accepted == accepted else 1
                    # Not one that was never made, nor one on which the store was silent.
                    broke_off += not isinstance(error, EndpointConnectionError | ReadTimeoutError)
                    if breaks >= self.options.attempts or (large and broke_off >= _LARGE_TRIES):
                        raise BrokenOffError(
                            f"{where}: the connection broke {breaks} times in turn ({fault}) "
                            "before the store had taken anything, and S3 takes no parts under "
                            f"{LEAST_PART_BYTES >> 20} MiB. Check the network, and run the same "
                            "command again; what is done is kept."
                        ) from error
                connection.watcher.pause(random.random() * 2 ** (breaks - 1))

    def confirm(self, name: str, data: bytes | bytearray, answer: Mapping[str, Any]) -> None:
        """The store must have received what was sent: by its checksum, or by its ETag."""
        stated = answer.get("ChecksumCRC32")
        if stated is None and self.options.encryption is None:
            stated, expected = answer["ETag"].strip('"'), hashlib.md5(data).hexdigest()
        else:
            expected = crc32_text(data)
        if stated is not None and stated != expected:
            raise StorageError(f"{self.locate(name)}: the store received other bytes than sent.")


def _split(piece: Piece) -> Iterator[Piece]:
    """A long range in parts."""
    if not isinstance(piece.view, memoryview):
        yield piece
        return
    for low in range(0, len(piece.view), PART_BYTES):
        view = piece.view[low : low + PART_BYTES]
        yield replace(piece, start=piece.start + low, view=view)


def results(futures: Sequence[Future[Any]], watcher: Watcher) -> list[Any]:
    """Results of all; at the first failure the rest is dropped, at an interrupt nothing retried."""
    try:
        finish(futures)
        return [future.result() for future in futures]
    except KeyboardInterrupt:
        with watcher.giving_up():
            cancel(futures)
        raise
    finally:
        cancel(futures)


def finish(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, until the first failure."""
    waiting = list(futures)
    while waiting:
        wait(waiting, WAKE_SECONDS, FIRST_EXCEPTION)
        raise_failed(futures)
        # Of futures that were cancelled `wait` never hears when their threads have been shut down.
        waiting = [future for future in waiting if not future.done()]


def cancel(futures: Sequence[Future[Any]]) -> None:
    """Drop those that have not begun, and wait for those that have."""
    # Of futures that were cancelled `wait` never hears when their threads have been shut down.
    begun = [future for future in futures if not future.cancel()]
    while wait(begun, WAKE_SECONDS).not_done:
        pass


def raise_failed(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        if future.done() and not future.cancelled() and (error := future.exception()):
            raise error


def _entry(name: str, response: Mapping[str, Any]) -> Entry:
    """What an answer says of the whole object."""
    found = _RANGE.fullmatch(response.get("ContentRange", ""))
    size = int(found[3]) if found else response["ContentLength"]
    return Entry(name, size, response["ETag"], response.get("Metadata", {}).get(DIGEST_KEY))


_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def _is_range(response: Mapping[str, Any], start: int, stop: int) -> bool:
    """Whether an answer states that it holds just this range."""
    found = _RANGE.fullmatch(response.get("ContentRange", ""))
    return found is not None and (int(found[1]), int(found[2]) + 1) == (start, stop)


def damaged(where: str, found: str, expected: str) -> ChangedError:
    """Error for an object that is not what was written."""
    return ChangedError(
        f"{where} is damaged: its SHA-256 begins with {found[:12]}, not {expected[:12]}. Upload or "
        "convert it again."
    )


def _receive(body: Any, view: memoryview | Scatter, done: int, size: int) -> Iterator[int]:
    """Take a body from its socket straight into memory; yields how many bytes came.

    urllib3's own `readinto` reads into memory of its own and copies: a third of the client's time.
    """
    if body is None:
        return
    from botocore.response import StreamingBody

    raw = getattr(body, "_raw_stream", None) if type(body) is StreamingBody else None
    readinto = getattr(getattr(raw, "_fp", None), "readinto", None)
    try:
        while done < size:
            part = view[done : min(done + _CHUNK, size)]
            if readinto is not None:
                count = readinto(part)
            else:
                chunk = body.read(len(part))
                count = len(chunk)
                part[:count] = chunk
            if not count:
                return
            done += count
            if done == size and raw is not None:
                raw.release_conn()
            yield count
    finally:
        body.close()  # does nothing once the connection went back to the pool


def _chunks(body: Any) -> Iterator[bytes]:
    """A body in large pieces; the connection goes back to the pool, or is closed if it broke."""
    if body is None:
        return
    try:
        while chunk := body.read(_CHUNK):
            yield chunk
    finally:
        body.close()


def _body_faults() -> tuple[type[BaseException], ...]:
    """What reading a body raises when the connection breaks or stalls."""
    from http.client import HTTPException

    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return (HTTPClientError, IncompleteReadError, HTTPException, OSError)


def crc32_text(data: bytes | bytearray) -> str:
    """CRC-32 as S3 writes it."""
    return base64.b64encode(_crc32(data).to_bytes(4, "big")).decode()


def _crc32(data: Any) -> int:
    try:
        from deflate import crc32
    except ImportError:  # four times slower
        crc32 = zlib.crc32
    return int(crc32(data))
