"""Local disks and object stores: files read, written, moved and listed."""

from lensprep.store.base import Entry, Store, member_path
from lensprep.store.connection import WAKE_SECONDS
from lensprep.store.files import (
    Uri,
    check_file,
    check_folder,
    exists,
    file_sha256,
    join_uri,
    local_file,
    local_folder,
    read_file,
    send_file,
    split_uri,
    uri_suffix,
    written_file,
    written_folder,
)
from lensprep.store.local import (
    PARTIAL_SUFFIX,
    LocalStore,
    atomic_writer,
    check_location,
    remove_partials,
    sync_file,
    sync_folder,
    write_atomic,
)
from lensprep.store.options import S3Options
from lensprep.store.ranges import PART_BYTES, Piece
from lensprep.store.registry import is_remote, local_path, open_remote, open_store
from lensprep.store.remote import RemoteStore

__all__ = [
    "PARTIAL_SUFFIX",
    "PART_BYTES",
    "WAKE_SECONDS",
    "Entry",
    "LocalStore",
    "Piece",
    "RemoteStore",
    "S3Options",
    "Store",
    "Uri",
    "atomic_writer",
    "check_file",
    "check_folder",
    "check_location",
    "exists",
    "file_sha256",
    "is_remote",
    "join_uri",
    "local_file",
    "local_folder",
    "local_path",
    "member_path",
    "open_remote",
    "open_store",
    "read_file",
    "remove_partials",
    "send_file",
    "split_uri",
    "sync_file",
    "sync_folder",
    "uri_suffix",
    "write_atomic",
    "written_file",
    "written_folder",
]
