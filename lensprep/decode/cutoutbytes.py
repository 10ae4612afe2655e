"""Bytes of cutouts that others wrote, and the one way in which a file is refused.

    raise RefusedError(detail, reason)      inside a function that `refusing` decorates
    content = unpacked(path)                bytes as they were before gzip or bzip2

Any exception of a third-party parser is the file's fault.
"""

from __future__ import annotations

import bz2
import gzip
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from lensprep.decode.reasons import CutoutReason, RejectReason
from lensprep.errors import size_text
from lensprep.source.cutouts import Refusal

MOST_BYTES: Final = 256 * 2**20
"""Largest file, unpacked: a whole brick of the Legacy Surveys in three bands takes 156 MB."""

_PACKED: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
}
_DETAIL: Final = 200

P = ParamSpec("P")
Found = TypeVar("Found")


class RefusedError(Exception):
    """Why a file is refused."""

    def __init__(self, detail: str, reason: str = CutoutReason.UNREADABLE) -> None:
        super().__init__(detail)
        self.reason = reason


def refusing(read: Callable[P, Found]) -> Callable[P, Found | Refusal]:
    """Turn whatever a reader of foreign bytes raises into a refusal."""

    @wraps(read)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Found | Refusal:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about headers that others wrote
                return read(*args, **kwargs)
        except ModuleNotFoundError:  # an extra of ours, which the command line names
            raise
        except RefusedError as refused:
            return Refusal(refused.reason, _line(str(refused)))
        except Exception as error:
            kind = type(error)
            home = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            return Refusal(_reason(error), _line(f"{home}{kind.__name__}: {error}"))

    return guarded


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return RejectReason.TRUNCATED
    checked = isinstance(error, (gzip.BadGzipFile, zipfile.BadZipFile))
    if isinstance(error, zlib.error) or (checked and "CRC" in str(error)):
        return RejectReason.CRC_MISMATCH
    return CutoutReason.UNREADABLE


def _line(text: str) -> str:
    """One line about foreign bytes that any terminal or table can show."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return plain if len(plain) <= _DETAIL else f"{plain[:_DETAIL]}..."


def unpacked(source: Path | bytes, head: bytes) -> bytes:
    """All bytes; read to the end, where gzip and bzip2 compare their checksums."""
    unpack = next((how for magic, how in _PACKED.items() if head.startswith(magic)), None)
    if unpack is None and isinstance(source, bytes):
        return source
    pieces, size = [], 0
    with (
        BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
        unpack(file) if unpack else file as stream,
    ):
        while piece := stream.read(2**20):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise RefusedError(
                    f"holds more than {size_text(MOST_BYTES)}", RejectReason.OVERSIZED
                )
    return b"".join(pieces)


def first_bytes(source: Path | bytes) -> bytes:
    """The bytes that say what a file is."""
    if isinstance(source, bytes):
        return source[:16]
    if not stat.S_ISREG(source.stat().st_mode):  # opening a pipe would wait for ever
        raise RefusedError("not a regular file")
    with source.open("rb") as file:
        return file.read(16)
