"""``s3://`` for WebDataset's own pipelines: an opener that continues where a connection broke.

register_s3()
wds.WebDataset("s3://bucket/lenses/train/train-{000000..000011}.tar", shardshuffle=12).decode()

It is registered in one process: every reading process, such as a spawned worker, has to call
`register_s3`.
"""

from __future__ import annotations

import io
from typing import Any

import webdataset as wds

from lensprep.errors import ChangedError, NotFoundError, ShardError
from lensprep.store import RemoteStore, S3Options, open_remote
from lensprep.store.registry import remote_schemes
from lensprep.store.remotefile import RemoteFile

_END_BYTES = 1024
"""Two zero blocks end every tar."""
_BUFFER = 1 << 20


def register_s3(options: S3Options | None = None, *, replace: bool = True) -> None:
    """Let stock WebDataset pipelines of this process open ``s3://`` and ``s3a://``.

    Parameters
    ----------
    options : S3Options, optional
        How to reach the store; the usual AWS variables and profiles apply in any case.
    replace : bool
        Replace an opener that is registered already.
    """

    def opener(url: str, mode: str = "rb", bufsize: int = _BUFFER, **_: Any) -> io.BufferedReader:
        return open_s3(url, mode, options)

    for scheme in remote_schemes():
        if replace or scheme not in wds.gopen_schemes:
            wds.gopen_schemes[scheme] = opener


def open_s3(url: str, mode: str = "rb", options: S3Options | None = None) -> io.BufferedReader:
    """Open an object for reading: ranges of one version of it, the next one read ahead.

    A broken or stalled connection is continued by range. A tar without its end mark is refused,
    because the stock reader takes a tar that was cut between two members for a shorter one.

    Parameters
    ----------
    url : str
        ``s3://bucket/key``.
    mode : str
        ``"rb"``.
    options : S3Options, optional

    Raises
    ------
    ShardError
        If there is no such object, or a tar is cut; while reading, if the object is replaced.
    StorageError
        If the store refuses, or does not answer.
    """
    if mode not in ("r", "rb"):
        raise ValueError(f"{url}: opened for reading only, not with mode {mode!r}")
    folder, _, name = url.rpartition("/")
    file = _ShardFile(open_remote(folder, options), name)
    if name.endswith(".tar"):
        size = file.size()
        file.seek(max(0, size - _END_BYTES))
        end = file.read()
        if len(end) < _END_BYTES or any(end):
            file.close()
            raise ShardError(
                f"{url} ends without an end mark at offset {size}: cut there. Upload it again."
            )
        file.seek(0)
    return io.BufferedReader(file, _BUFFER)


class _ShardFile(RemoteFile):
    """An object whose faults are the shard's."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        try:
            super().__init__(store, name, read_ahead=True)
        except NotFoundError as error:
            raise ShardError(f"{str(error).rstrip('.')} (offset 0).") from error

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        try:
            return super().read(size)
        except (NotFoundError, ChangedError) as error:
            raise ShardError(f"{str(error).rstrip('.')} (offset {start}).") from error
