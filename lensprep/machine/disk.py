"""A disk: what is free on it, and how fast it is written and read."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lensprep.errors import size_text
from lensprep.store.local import disk_errors

_CHUNK: Final = 16 << 20
_MOST_BYTES: Final = 512 << 20
_BLOCK: Final = 512
"""Bytes of a block in the system's account of what a process had read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """A folder's disk."""

    folder: str
    device: int
    """The same for all folders on one disk."""
    free_bytes: int
    write_bytes_per_s: float
    read_bytes_per_s: float | None
    """None if what was written stayed in memory, so that nothing was read from the disk."""

    def text(self) -> str:
        """For people, in one sentence."""
        read = (
            "reads come from memory"
            if self.read_bytes_per_s is None
            else f"reads {size_text(self.read_bytes_per_s)}/s"
        )
        return (
            f"{self.folder}: {size_text(self.free_bytes)} free, "
            f"writes {size_text(self.write_bytes_per_s)}/s, {read}"
        )


def measure_disk(folder: Path, seconds: float = 1.0) -> Disk:
    """Write a file for some time, to the disk and not only to memory, and read it back.

    The file has no name: it is gone when the process is, however that ends. It takes at most a
    tenth of what is free, and half a gigabyte.

    Raises
    ------
    StorageError
        If nothing can be written there.
    """
    with disk_errors(folder, "written to"):
        free = shutil.disk_usage(folder).free
        most = max(_CHUNK, min(_MOST_BYTES, free // 10))
        chunk = os.urandom(_CHUNK)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            number = file.fileno()
            written, start = 0, time.perf_counter()
            while written < most and time.perf_counter() - start < seconds:
                written += os.write(number, chunk)
                os.fdatasync(number)
            writing = time.perf_counter() - start
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
            read, start = 0, time.perf_counter()
            while got := len(file.read(_CHUNK)):
                read += got
                if time.perf_counter() - start >= seconds:
                    break
            reading = time.perf_counter() - start
            came = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before
            device = os.fstat(number).st_dev
    return Disk(
        folder=str(folder),
        device=device,
        free_bytes=free,
        write_bytes_per_s=written / writing,
        read_bytes_per_s=read / reading if 2 * came * _BLOCK > read else None,
    )
