"""A folder in an object store that speaks S3: the requests, by boto3.

    store = S3Store("s3://bucket/lenses", S3Options(...))      see `RemoteStore`

Pool, signatures and regions are boto3's; retries are ours (`lensprep.store.connection.Tries`). When
the answer to a write was lost, what is there tells whether the write was made.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

from lensprep.errors import ChangedError, StorageError
from lensprep.store.base import Entry, member_name
from lensprep.store.connection import Tries
from lensprep.store.options import S3Options
from lensprep.store.ranges import Answer
from lensprep.store.remote import BrokenOffError, RemoteStore, crc32
from lensprep.store.s3client import S3Connection, connect, parse_s3
from lensprep.store.s3errors import clear_errors, status_of

LEAST_PART_BYTES: Final = 5 << 20
"""S3 accepts no smaller part, but for the last one of an object."""
_LARGE_BYTES: Final = 2 * LEAST_PART_BYTES
"""From this size on, smaller parts are possible."""
_LARGE_TRIES: Final = 3
"""Times that a large request breaks off before smaller ones are tried."""
DIGEST_KEY: Final = "sha256"
"""Metadata of every object written here."""
_MARKERS: Final = {
    "NextContinuationToken": "ContinuationToken",
    "NextKeyMarker": "KeyMarker",
    "NextUploadIdMarker": "UploadIdMarker",
}
"""Names of the marks of the next page, in an answer and in the request for that page."""
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class S3Store(RemoteStore):
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

    connection: S3Connection

    def __init__(self, uri: str, options: S3Options | None = None) -> None:
        self.bucket, self.prefix = parse_s3(uri)
        options = options or S3Options()
        whole = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        super().__init__(whole, options, connect(options))
        self.client = self.connection.client

    @property
    def endpoint(self) -> str:
        """URL of the store."""
        return str(self.client.meta.endpoint_url)

    def key(self, name: str) -> str:
        """Key of a file in the bucket."""
        pure = str(member_name(self.uri, name))
        return f"{self.prefix}/{pure}" if self.prefix else pure

    def _ask(self, operation: str, action: str, name: str | None = None, **more: Any) -> Any:
        """Make a request about a file or the bucket; errors say which ``action`` failed on what."""
        where = self.uri if name is None else self.locate(name)
        if name is not None:
            more["Key"] = self.key(name)
        with clear_errors(action, where):
            return self.connection.request(operation, Bucket=self.bucket, **more)

    # ------------------------------------------------------------------ reading

    def _base(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def list_once(self, prefix: str) -> list[Entry]:
        """Files whose names begin with ``prefix``, sorted by name."""
        base, found = self._base(), list[Entry]()
        for page in self._pages("list_objects_v2", "list", base + prefix):
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(base)
                if name and not name.endswith("/"):  # consoles make such keys as folders
                    found.append(Entry(name, item["Size"], item["ETag"]))
        return sorted(found, key=lambda entry: entry.name)

    def _pages(self, operation: str, action: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Answers to a listing, a thousand names each."""
        more: dict[str, str] = {}
        while True:
            page = self._ask(operation, action, Prefix=prefix, **more)
            yield page
            more = {ours: page[theirs] for theirs, ours in _MARKERS.items() if theirs in page}
            if not (page.get("IsTruncated") and more):
                return

    def stat(self, name: str) -> Entry:
        """Size, ETag and stated digest of a file."""
        return _entry(name, self._ask("head_object", "read", name))

    def has_any(self) -> bool:
        """Whether there is anything in this folder."""
        return bool(
            self._ask("list_objects_v2", "list", Prefix=self._base(), MaxKeys=1).get("Contents")
        )

    def get(self, name: str, start: int, stop: int, version: str | None) -> Answer:
        """Ask for bytes ``start`` to ``stop``; see `RemoteStore.get`."""
        condition = {"IfMatch": version} if version is not None else {}
        answer = self._get(name, f"bytes={start}-{stop - 1}", **condition)
        if answer is not None:
            return answer
        entry = _entry(name, self._ask("head_object", "read", name, **condition))
        if start and entry.bytes < stop:
            raise ChangedError(f"{self.locate(name)} has {entry.bytes} bytes, not {stop} or more.")
        return Answer(entry, None, None)

    def get_tail(self, name: str, length: int) -> Answer:
        """Ask for the last ``length`` bytes of a file, or all of it."""
        return self._get(name, f"bytes=-{length}") or Answer(self.stat(name), (0, 0), None)

    def _get(self, name: str, span: str, **condition: str) -> Answer | None:
        """The store's answer for a range; None if the object ends before it."""
        from lensprep.store.sockets import S3Body

        try:
            response = self._ask("get_object", "read", name, Range=span, **condition)
        except StorageError as error:
            if status_of(getattr(error.__cause__, "response", {})) != 416:
                raise
            return None
        found = _RANGE.fullmatch(response.get("ContentRange", ""))
        stated = (int(found[1]), int(found[2]) + 1) if found else None
        body = S3Body(response["Body"], response["ContentLength"])
        return Answer(_entry(name, response), stated, body)

    # ------------------------------------------------------------------ writing

    def put(self, name: str, data: bytes, *, new: bool) -> None:
        """Write an object in one request; see `RemoteStore.put`."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if new else {}
        answer = self._send(
            name,
            "put_object",
            large=new and len(data) >= _LARGE_BYTES,  # `upload_file` can send it in parts
            Body=data,
            ChecksumCRC32=crc32_text(data),
            Metadata={DIGEST_KEY: hashlib.sha256(data).hexdigest()},
            **condition,
            **self.options.put_arguments(),
        )
        self._confirm(name, data, answer)

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._ask("delete_object", "remove", name)

    def begin_upload(self, name: str, sha256: str | None = None) -> str:
        """Begin an object that is sent in parts, and state its digest."""
        answer = self._ask(
            "create_multipart_upload",
            "write",
            name,
            ChecksumAlgorithm="CRC32",
            Metadata={} if sha256 is None else {DIGEST_KEY: sha256},
            **self.options.put_arguments(),
        )
        return str(answer["UploadId"])

    def put_part(
        self, name: str, upload: str, number: int, data: bytes | bytearray, over: threading.Event
    ) -> dict[str, Any]:
        """Send a part; see `RemoteStore.put_part`."""
        crc = crc32_text(data)
        answer = self._send(
            name,
            "upload_part",
            large=len(data) >= _LARGE_BYTES,
            over=over,
            UploadId=upload,
            PartNumber=number,
            Body=data,
            ChecksumCRC32=crc,
        )
        self._confirm(name, data, answer)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": crc}

    def end_upload(self, name: str, upload: str, parts: Sequence[Any], *, new: bool) -> None:
        """Make the object of its parts."""
        condition = {"IfNoneMatch": "*"} if new else {}
        made = {"Parts": list(parts)}
        self._ask(
            "complete_multipart_upload",
            "write",
            name,
            UploadId=upload,
            MultipartUpload=made,
            **condition,
        )

    def abort_upload(self, name: str, upload: str) -> None:
        """Drop an upload; NotFoundError if there is none."""
        self._ask("abort_multipart_upload", "abort the upload of", name, UploadId=upload)

    def list_uploads(self) -> list[tuple[str, str]]:
        """Name and id of every upload that was begun and not ended."""
        base = self._base()
        return [
            (item["Key"].removeprefix(base), item["UploadId"])
            for page in self._pages("list_multipart_uploads", "list uploads of", base)
            for item in page.get("Uploads", ())
        ]

    def _send(
        self,
        name: str,
        operation: str,
        *,
        large: bool = False,
        over: threading.Event | None = None,
        **arguments: Any,
    ) -> Any:
        """Make a request with content, and retry it if its connection breaks.

        Tries are counted from the last request, of any thread, that the store accepted. One that
        broke off is retried alone, so that it has the whole bandwidth. A ``large`` one is given up
        sooner, as smaller requests can replace it; after ``over`` nothing is retried.
        """
        from botocore.exceptions import HTTPClientError, ReadTimeoutError

        connection, broke_off = self.connection, 0
        tries = Tries(connection)
        arguments |= {"Bucket": self.bucket, "Key": self.key(name)}
        with clear_errors("write", self.locate(name)):
            while True:
                self.require_going(name)
                if over is not None and over.is_set():
                    raise StorageError(f"{self.locate(name)}: stopped.")
                try:
                    with connection.narrow if broke_off else nullcontext():
                        answer = connection.once(operation, **arguments)
                    connection.accepted += 1
                    return answer
                except Exception as error:
                    if not connection.may_pass(error):
                        raise
                    lost = isinstance(error, HTTPClientError)
                    # A timeout means that the store was silent, not that the connection broke.
                    broke_off += lost and not isinstance(error, ReadTimeoutError)
                    enough = large and broke_off >= _LARGE_TRIES
                    fault = connection.fault(operation, error)
                    if tries.again(fault, connection.accepted, enough=enough):
                        continue
                    self.require_going(name)
                    if not lost:
                        raise
                    raise BrokenOffError(
                        f"{self.locate(name)}: the connection broke {tries.failed} times in a row "
                        f"({type(error).__name__}) before the store had accepted anything, and S3 "
                        f"accepts no parts under {LEAST_PART_BYTES >> 20} MiB. Check the network, "
                        "and run the same command again; finished work is kept."
                    ) from error

    def _confirm(self, name: str, data: bytes | bytearray, answer: Mapping[str, Any]) -> None:
        """Require by checksum or ETag that the store received what was sent."""
        stated = answer.get("ChecksumCRC32")
        if stated is None and self.options.encryption is None:
            stated, expected = answer["ETag"].strip('"'), hashlib.md5(data).hexdigest()
        else:
            expected = crc32_text(data)
        if stated is not None and stated != expected:
            raise StorageError(f"{self.locate(name)}: the store received other bytes than sent.")


def _entry(name: str, response: Mapping[str, Any]) -> Entry:
    """What an answer states about the whole object."""
    found = _RANGE.fullmatch(response.get("ContentRange", ""))
    size = int(found[3]) if found else response["ContentLength"]
    return Entry(name, size, response["ETag"], response.get("Metadata", {}).get(DIGEST_KEY))


def crc32_text(data: bytes | bytearray) -> str:
    """CRC-32 as S3 writes it."""
    return base64.b64encode(crc32(data).to_bytes(4, "big")).decode()
