"""A proxy that breaks connections to an object store on purpose, request by request.

with FaultProxy(port) as proxy:
    proxy.add(Fault("reset-answer", match=b"GET /bucket/x", after=5000, times=2))
    ... a client uses proxy.url ...
    proxy.requests            the first line of every request that passed
    proxy.bytes_down          bytes of all answers
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) [^\r]* HTTP/1\.1\r\n")
_CHUNK = 64 << 10


@dataclass
class Fault:
    """What happens to requests whose first line begins with ``match``."""

    kind: str
    """
    reset-request   forward ``after`` bytes of the request, then reset
    reset-answer    forward ``after`` bytes of the answer, then reset
    lose-answer     forward all of the request, nothing of the answer, then reset
    stall           forward ``after`` bytes of the answer, then nothing, and keep open
    refuse          reset at once
    answer          answer ``status`` with S3's error ``code``, do not forward
    """
    match: bytes = b""
    holding: bytes = b""
    """And whose head holds this, such as ``bytes=0-``: of a file in parts the first one."""
    times: int = 1
    after: int = 0
    status: int = 503
    code: str = "SlowDown"
    then: Callable[[], object] | None = None
    """Called when the fault happens."""


class _Link:
    """One connection."""

    def __init__(self) -> None:
        self.kind, self.left = "", 0
        self.then: Callable[[], object] | None = None

    async def happen(self) -> None:
        if self.then is not None:
            await asyncio.to_thread(self.then)


class FaultProxy:
    """Listens on loopback in a thread of its own and forwards to ``port``."""

    def __init__(self, port: int) -> None:
        self.port, self.requests, self.bytes_down = port, list[str](), 0
        self.latency_s, self.bytes_per_s = 0.0, 0.0
        self._faults: list[Fault] = []
        self._writers = set[asyncio.StreamWriter]()
        self._serving = set[asyncio.Task[None]]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        start = asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Break all connections and listen no more."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        # A server that is closed drops connections that it has just accepted, their sockets open.
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        await _rounds()
        self._server.close()
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
        for writer in self._writers:
            if not writer.is_closing() or writer.transport.get_write_buffer_size():
                writer.transport.abort()  # never served, or waiting for what is to be sent
        await _rounds()  # a transport closes its socket in a later one

    def add(self, *faults: Fault) -> None:
        self._faults.extend(faults)

    def count(self, text: str) -> int:
        """Requests whose first line holds the text."""
        return sum(text in line for line in self.requests)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task that is cancelled before it has begun does not close what it was given.
        self._writers.add(writer)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers, pumps = [writer], list[asyncio.Task[None]]()
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
            writers.append(up_writer)
            self._writers.add(up_writer)
            link = _Link()
            pumps.append(asyncio.ensure_future(self._up(reader, up_writer, writer, link)))
            pumps.append(asyncio.ensure_future(self._down(up_reader, writer, link)))
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens there: the client's connection is closed; or the test is over
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in writers:
                each.close()
                if each.transport.get_write_buffer_size() == 0:  # else it waits to be sent
                    self._writers.discard(each)

    async def _up(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        link: _Link,
    ) -> None:
        while data := await reader.read(_CHUNK):
            if found := _REQUEST.match(data):
                self.requests.append(found[0].decode("latin-1").strip())
                await asyncio.sleep(self.latency_s)
                fault = self._take(data)
                if fault is not None:
                    link.kind, link.left = fault.kind, fault.after
                    link.then = fault.then
                if link.kind in ("refuse", "answer"):
                    await link.happen()
                if link.kind == "refuse":
                    return _break(client)
                if link.kind == "answer":
                    assert fault is not None
                    client.write(_error(fault))
                    await client.drain()
                    return None
            if link.kind == "reset-request":
                if len(data) >= link.left:
                    await link.happen()
                    return _break(client)
                link.left -= len(data)
            server.write(data)
            await server.drain()
        return None

    async def _down(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, link: _Link
    ) -> None:
        while data := await reader.read(_CHUNK):
            if link.kind == "lose-answer" and not data.startswith(b"HTTP/1.1 100"):
                await link.happen()
                return _break(client)
            if link.kind in ("reset-answer", "stall"):
                data = data[: link.left]
                link.left -= len(data)
            client.write(data)
            self.bytes_down += len(data)
            await client.drain()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            if link.kind in ("reset-answer", "stall") and link.left <= 0:
                await link.happen()
            if link.kind == "reset-answer" and link.left <= 0:
                return _break(client)
            if link.kind == "stall" and link.left <= 0:
                await asyncio.sleep(3600)
        return None

    def _take(self, data: bytes) -> Fault | None:
        for fault in self._faults:
            if fault.times > 0 and data.startswith(fault.match) and fault.holding in data:
                fault.times -= 1
                return fault
        return None


async def _rounds() -> None:
    """Let the loop go round a few times."""
    for _ in range(10):
        await asyncio.sleep(0)


def _break(client: asyncio.StreamWriter) -> None:
    """Reset, not close: what is on its way is lost too."""
    with contextlib.suppress(OSError):
        client.transport.abort()


def _error(fault: Fault) -> bytes:
    body = f"<Error><Code>{fault.code}</Code><Message>On purpose.</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {fault.status} Error\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
