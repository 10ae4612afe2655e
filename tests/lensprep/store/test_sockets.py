"""What is reached of the insides of botocore and urllib3 is there in the installed versions."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import botocore
import pytest
import urllib3

from lensprep.store.ranges import BrokenBodyError
from lensprep.store.sockets import socket_below
from tests.faultproxy import Fault, FaultProxy

VERSIONS = f"botocore {botocore.__version__} or urllib3 {urllib3.__version__} has changed inside"


@pytest.fixture
def body(s3):
    store = s3.store()
    store.write("x", bytes(range(200)) * 20_000)
    return store.get("x", 0, 4_000_000, None).body


def test_the_installed_versions_have_what_is_reached_for(body):
    assert body.is_direct, f"{VERSIONS}: no readinto below a body; reading falls back to copies"
    assert socket_below(body._raw) is not None, f"{VERSIONS}: no socket below a body"
    body.close()


@pytest.mark.parametrize("lacking", [(), ("_raw",), ("_raw", "_readinto")])
def test_bytes_are_the_same_with_and_without_the_insides(body, lacking):
    for name in lacking:
        setattr(body, name, None)
    if lacking == ("_raw",):
        body._readinto = None
    found = bytearray()
    view = memoryview(bytearray(1 << 20))
    while count := body.readinto(view):
        found += view[:count]
    assert found == bytes(range(200)) * 20_000
    body.close()
    body.interrupt()  # without a socket: nothing happens


def test_an_interrupt_ends_a_wait_for_bytes(s3):
    """The store is silent in the middle of a body, for longer than anybody waits."""
    s3.store().write("x", bytes(4_000_000))
    with FaultProxy(s3.server.ports["s3"]) as proxy:
        proxy.add(Fault("stall", b"GET", after=1_000_000))
        store = s3.store(endpoint_url=proxy.url, read_timeout_s=60.0)
        body = store.get("x", 0, 4_000_000, None).body
        threading.Timer(1.0, body.interrupt).start()
        started, view = time.monotonic(), memoryview(bytearray(1 << 20))
        with suppress(BrokenBodyError):
            while body.readinto(view):
                pass
        assert time.monotonic() - started < 30
        body.close()
