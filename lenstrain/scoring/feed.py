"""The other side of `lensprep.decode.feed`: start it, ask it, read what it decoded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lensprep.dataset import STAMP_SHAPE
from lensprep.errors import InputError
from lensprep.store.interrupts import killed_by


def read_arrow(path: Path) -> pa.Table:
    """An Arrow file, mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def stamps_of(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Pixels from a column of bytes, shape (n, 3, 64, 64); nothing is copied."""
    parts = []
    for chunk in column.chunks:
        data = chunk.buffers()[1]
        size = chunk.type.byte_width
        flat = np.frombuffer(data, dtype, len(chunk) * size // dtype.itemsize, chunk.offset * size)
        parts.append(flat.reshape(len(chunk), *STAMP_SHAPE))
    if not parts:
        return np.empty((0, *STAMP_SHAPE), dtype)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """The one answer of `lensprep.decode.feed` to a request.

    Raises
    ------
    InputError
        If it refuses, with its reason.
    """
    with feeding(request) as answers:
        return next(iter(answers))


@contextmanager
def feeding(request: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """Start `lensprep.decode.feed`; gives its answers, and ends it on leaving.

    Raises
    ------
    InputError
        If it refuses, with its reason.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "lensprep.decode.feed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _answers(process, request)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        if process.poll() is None:
            process.terminate()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _answers(process: subprocess.Popen[str], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with suppress(BrokenPipeError):  # it has refused already: its reason is on standard error
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        # The next part may be made ready while this one is used.
        with suppress(BrokenPipeError):
            process.stdin.write("next\n")
            process.stdin.flush()
        yield json.loads(line)
    reason = process.stderr.read().strip()
    status = process.wait()
    if status < 0:  # what is on standard error then is older, and not why
        raise InputError(
            f"The process that decodes the stamps was killed ({killed_by(status)}). Run the same "
            "command again, with fewer processes if memory ran out."
        )
    if status != 0:
        raise InputError(reason.splitlines()[-1] if reason else f"Decoding ended with {status}.")
