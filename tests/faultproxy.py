"""A proxy that breaks connections to an object store on purpose, request by request.

with FaultProxy(port) as proxy:
    proxy.add(Fault("reset-answer", match=b"GET /bucket/x", after=5000, times=2))
    ... a client uses proxy.url ...
    proxy.requests            the first line of every request that passed
    proxy.bytes_down          bytes of all answers
    proxy.happened            how many faults of each kind happened, as a Counter

A share of the requests, the same in every run whatever threads ask first (a seed draws by method,
file name, range and how often that was asked); `ALWAYS` for as long as the proxy lives:

    proxy.add(Fault("alter", match=b"GET ", times=ALWAYS, share=0.1, seed=7, after=DRAWN))
    proxy.add(Fault("misdirect", match=b"GET ", times=ALWAYS, share=0.1, seed=7))
    proxy.add(Fault("html", match=b"PUT ", head=b'ETag: "0"\r\n', length=False))
    proxy.add(Fault("drop-header", match=b"HEAD ", header=b"ETag|x-amz-checksum-\\w+"))
    proxy.break_after_s = 0.4           every connection is reset when it is so old
    proxy.flips = [300, 9000]           the next connections turn over a bit there, TLS or not
    proxy.clear()                       no faults from now on

Of several faults that fit a request the first one added happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ALWAYS = 1 << 60
"""Times of a fault that does not wear out."""
DRAWN = -1
"""Place of a fault that is drawn from its seed, within the body."""
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in.</body></html>"

_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) ([^ \r]*) HTTP/1\.1\r\n")
_RANGE = re.compile(rb"\r\nRange: *([^\r]*)", re.I)
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.I)
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
    alter           turn over one bit of the answer's body, ``after`` bytes from its beginning
    alter-request   the same of the request's body
    cut             end the answer's body after ``after`` bytes, and state that as its length
    misdirect       answer with what a GET of ``to`` and ``range`` gives, with its headers
    html            answer 200 with `LOGIN_PAGE` and the lines ``head``; do not forward
    drop-header     leave out of the answer the headers whose whole names match ``header``
    """
    match: bytes = b""
    holding: bytes = b""
    """And whose head holds this, such as ``bytes=0-``: of a file in parts the first one."""
    times: int = 1
    after: int = 0
    """Or `DRAWN`, for `alter`, `alter-request` and `cut`."""
    share: float = 1.0
    """Of the requests that fit, drawn from the seed."""
    seed: int = 0
    to: str = ""
    """Path of another object, such as ``/bucket/key``. Without it and ``range`` one of the GETs
    that passed before is drawn: another object, or another range."""
    range: str = ""
    """Such as ``bytes=0-99``; without it the whole object."""
    head: bytes = b""
    """Header lines, each with its ``\\r\\n``."""
    length: bool = True
    """Whether the page's length is stated; else the connection ends with it."""
    header: bytes = b""
    status: int = 503
    code: str = "SlowDown"
    then: Callable[[], object] | None = None
    """Called when the fault happens."""


class _Link:
    """One connection."""

    def __init__(self) -> None:
        self.begin(None, random.Random(0))
        self.answered = True  # what is not HTTP, such as TLS, passes as it is
        self.flip = -1

    def begin(self, fault: Fault | None, chance: random.Random) -> None:
        """A request comes, with a fault or without one."""
        self.fault, self.chance = fault, chance
        self.kind, self.left = ("", 0) if fault is None else (fault.kind, fault.after)
        self.answered = False

    async def happen(self) -> None:
        if self.fault is not None and self.fault.then is not None:
            await asyncio.to_thread(self.fault.then)

    def place(self, head: bytes, body: bytes) -> None:
        """Draw where the fault happens, now that the body's length is known."""
        if self.left == DRAWN:
            found = _LENGTH.search(head)
            size = int(found[1]) if found else len(body)
            self.left = self.chance.randrange(size) if size else 0

    def altered(self, body: bytes) -> bytes:
        """A piece of the body, with its bit turned over if that lies in this piece."""
        place, self.left = self.left, self.left - len(body)
        if not 0 <= place < len(body):
            return body
        bit = bytes([body[place] ^ 1 << self.chance.randrange(8)])
        return body[:place] + bit + body[place + 1 :]


class FaultProxy:
    """Listens on loopback in a thread of its own and forwards to ``port``."""

    def __init__(self, port: int) -> None:
        self.port, self.requests, self.bytes_down = port, list[str](), 0
        self.latency_s, self.bytes_per_s = 0.0, 0.0
        self.break_after_s: float | None = None
        self.flips = list[int]()
        self.happened = Counter[str]()
        self._faults: list[Fault] = []
        self._asked = Counter[tuple[int, bytes]]()
        self._targets: dict[tuple[str, str], None] = {}
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

    def clear(self) -> None:
        """Let everything pass from now on."""
        self._faults = []

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
            link.flip = self.flips.pop(0) if self.flips else -1
            pumps.append(asyncio.ensure_future(self._up(reader, up_writer, writer, link)))
            pumps.append(asyncio.ensure_future(self._down(up_reader, writer, link)))
            done, _ = await asyncio.wait(
                pumps, timeout=self.break_after_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                self.happened["break"] += 1
                _break(writer)
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
            head = b""
            if found := _REQUEST.match(data):
                head, data = await _head(reader, data)
                self.requests.append(found[0].decode("latin-1").strip())
                await asyncio.sleep(self.latency_s)
                link.begin(*self._take(head))
                fault = link.fault
                if link.kind in ("refuse", "answer", "html"):
                    await link.happen()
                if link.kind == "refuse":
                    return _break(client)
                if fault is not None and link.kind in ("answer", "html"):
                    client.write(_error(fault) if link.kind == "answer" else _page(fault))
                    await client.drain()
                    return None
                if fault is not None and link.kind == "misdirect":
                    head = self._misdirected(head, fault, link.chance)
                if link.kind == "alter-request":
                    link.place(head, data)
            if link.kind == "alter-request":
                data = link.altered(data)
            data = head + data
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
            goes_on = data.startswith(b"HTTP/1.1 100")
            if link.kind == "lose-answer" and not goes_on:
                await link.happen()
                return _break(client)
            head = b""
            if not link.answered and not goes_on:
                link.answered = True
                head, data = await _head(reader, data)
                if link.kind in ("alter", "cut"):
                    link.place(head, data)
                if link.kind == "cut":
                    head = _LENGTH.sub(b"\r\nContent-Length: %d" % link.left, head)
                if link.fault is not None and link.kind == "drop-header":
                    head = re.sub(rb"(?mi)^(%s):.*\r\n" % link.fault.header, b"", head)
            if link.kind == "alter" and not goes_on:
                data = link.altered(data)
            if link.kind == "cut" and not goes_on:
                data = data[: link.left]
                link.left -= len(data)
            data = head + data
            if link.kind in ("reset-answer", "stall"):
                data = data[: link.left]
                link.left -= len(data)
            if 0 <= link.flip < len(data):
                data = data[: link.flip] + bytes([data[link.flip] ^ 1]) + data[link.flip + 1 :]
            link.flip -= len(data)
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
            if link.kind == "cut" and link.left <= 0:
                return None  # the client finds the connection closed
        return None

    def _take(self, head: bytes) -> tuple[Fault | None, random.Random]:
        """The fault that a request meets, and what draws its place."""
        request = _REQUEST.match(head)
        assert request is not None
        path, found = request[2].decode(), _RANGE.search(head)
        what = request[1] + path.partition("?")[0].rpartition("/")[2].encode()
        span = found[1] if found else b""
        chance = random.Random(0)
        taken = None
        for number, fault in enumerate(self._faults):
            if fault.times > 0 and head.startswith(fault.match) and fault.holding in head:
                # By what is asked, and not in turn: threads come in any order.
                self._asked[number, what + span] += 1
                nth = self._asked[number, what + span]
                chance = random.Random(f"{fault.seed} {what + span!r} {nth}")
                if chance.random() < fault.share:
                    taken = fault
                    break
        if taken is not None:
            taken.times -= 1
            self.happened[taken.kind] += 1
        if request[1] == b"GET" and "list-type" not in path:
            self._targets[path, span.decode()] = None
        return taken, chance

    def _misdirected(self, head: bytes, fault: Fault, chance: random.Random) -> bytes:
        """Head of a request for something else, signed anew."""
        request, found = _REQUEST.match(head), _RANGE.search(head)
        assert request is not None
        mine = request[2].decode(), found[1].decode() if found else ""
        to, span = fault.to or mine[0], fault.range
        if not fault.to and not fault.range:
            others = [target for target in self._targets if target != mine]
            if not others:
                self.happened["misdirect"] -= 1  # nothing else was asked for yet
                return head
            to, span = chance.choice(others)
        asked = AWSRequest("GET", f"http://127.0.0.1:{self.port}{to}")
        asked.headers["Host"] = f"127.0.0.1:{self.port}"
        if span:
            asked.headers["Range"] = span
        keys = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(asked)
        lines = [f"GET {to} HTTP/1.1", *(f"{name}: {text}" for name, text in asked.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()


async def _rounds() -> None:
    """Let the loop go round a few times."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _head(reader: asyncio.StreamReader, data: bytes) -> tuple[bytes, bytes]:
    """The head that `data` begins with, read to its end, and what came after it."""
    while b"\r\n\r\n" not in data and (more := await reader.read(_CHUNK)):
        data += more
    head, mark, body = data.partition(b"\r\n\r\n")
    return head + mark, body


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


def _page(fault: Fault) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n" + fault.head
    if fault.length:
        head += b"Content-Length: %d\r\n" % len(LOGIN_PAGE)
    return head + b"\r\n" + LOGIN_PAGE
