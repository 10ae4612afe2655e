"""An object store as a file system of pyarrow's.

filesystem = remote_filesystem(uri, options)    a pyarrow.fs.FileSystem; it pickles
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from lensprep.errors import NotFoundError
from lensprep.store.options import S3Options
from lensprep.store.registry import open_remote, scheme_of
from lensprep.store.remote import RemoteStore
from lensprep.store.remotefile import RemoteFile


@dataclass(frozen=True)
class RemoteHandler(pafs.FileSystemHandler):
    """What pyarrow asks of a file system, for reading; paths are ``bucket/key``."""

    scheme: str
    options: S3Options

    def get_type_name(self) -> str:
        """Name of the kind of file system."""
        return f"lensprep-{self.scheme}"

    def normalize_path(self, path: str) -> str:
        """Paths are taken as they are."""
        return path

    def open(
        self, path: str, *, read_ahead: bool = False, version: str | None = None
    ) -> RemoteFile:
        """Open an object for reading; see `RemoteFile`."""
        store, name = self._file(path)
        return RemoteFile(store, name, read_ahead=read_ahead, version=version)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open an object for reading at any position."""
        return pa.PythonFile(self.open(path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open an object for reading from its beginning."""
        return pa.PythonFile(self.open(path, read_ahead=True), mode="r")

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """What is at these paths; a prefix of objects is a directory."""
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        store = self._folder(path)
        if "/" in path.strip("/"):  # else a bucket
            above, name = self._file(path)
            try:
                return pafs.FileInfo(path, pafs.FileType.File, size=above.stat(name).bytes)
            except NotFoundError:
                pass
        found = pafs.FileType.Directory if store.has_any() else pafs.FileType.NotFound
        return pafs.FileInfo(path, found)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """All objects below a directory (subdirectories have no entries of their own)."""
        base = selector.base_dir.rstrip("/")
        entries = self._folder(base).entries()
        if not entries and not selector.allow_not_found:
            raise FileNotFoundError(base)
        return [
            pafs.FileInfo(f"{base}/{entry.name}", pafs.FileType.File, size=entry.bytes)
            for entry in entries
            if selector.recursive or "/" not in entry.name
        ]

    def _file(self, path: str) -> tuple[RemoteStore, str]:
        folder, _, name = path.rstrip("/").rpartition("/")
        return self._folder(folder), name

    def _folder(self, path: str) -> RemoteStore:
        return open_remote(f"{self.scheme}://{path}", self.options)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("lensprep reads its sources and never writes to them")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse


def remote_filesystem(uri: str, options: S3Options | None = None) -> pafs.PyFileSystem:
    """File system of a location's object store for pyarrow; it can be pickled to workers."""
    return pafs.PyFileSystem(RemoteHandler(scheme_of(uri) or "s3", options or S3Options()))
