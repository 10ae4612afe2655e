"""Which pages of a file are in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pages_in_memory(path: Path) -> NDArray[np.bool_]:
    """Whether each page of a file is in memory, as mincore says; the file must be our own."""
    size = path.stat().st_size
    found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    descriptor = os.open(path, os.O_RDONLY)
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    os.close(descriptor)
    assert libc.mincore(address, size, found.ctypes.data) == 0
    libc.munmap(address, size)
    return found & 1 == 1
