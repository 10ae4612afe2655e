"""The only file that reaches into botocore and urllib3.

botocore hands out a body that copies every byte twice and cannot be interrupted. Below it are
urllib3's response and Python's own (`http.client`), which do better, but whose attributes are
private. If an installed version lacks one, the body is read the slow, public way.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Final

from botocore.exceptions import HTTPClientError, IncompleteReadError
from botocore.response import StreamingBody

from lensprep.store.ranges import BrokenBodyError

_FAULTS: Final = (HTTPClientError, IncompleteReadError, HTTPException, OSError)
"""What reading a body raises when the connection breaks or stalls."""


class S3Body:
    """A `lensprep.store.ranges.Body` from botocore's `StreamingBody` of ``size`` bytes."""

    def __init__(self, body: Any, size: int) -> None:
        self._body, self._left = body, size
        self._raw: Any = getattr(body, "_raw_stream", None) if type(body) is StreamingBody else None
        # urllib3's own `readinto` copies: a third of the client's time.
        self._readinto = getattr(getattr(self._raw, "_fp", None), "readinto", None)

    @property
    def is_direct(self) -> bool:
        """Whether bytes go from the socket straight into the caller's memory."""
        return self._readinto is not None

    def readinto(self, view: memoryview) -> int:
        """Receive bytes; 0 at the end."""
        try:
            count = self._readinto(view) if self._readinto is not None else self._copy(view)
            self._left -= count
            if not self._left and self._readinto is not None:
                self._raw.release_conn()  # or `close` would drop a connection that can be kept
        except _FAULTS as error:
            raise BrokenBodyError(type(error).__name__) from error
        return int(count)

    def _copy(self, view: memoryview) -> int:
        chunk = self._body.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def interrupt(self) -> None:
        """Break the connection; without a socket to break, the thread wakes at its time limit."""
        sock = socket_below(self._raw)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Keep the connection if everything has arrived, else close it."""
        self._body.close()


def socket_below(raw: Any) -> socket.socket | None:
    """The socket of a urllib3 response."""
    found: socket.socket | None = getattr(getattr(raw, "_connection", None), "sock", None)
    return found
