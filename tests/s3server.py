"""A real object store on loopback: seaweedfs, HTTP and HTTPS, started and stopped by fixtures.

server = S3Server(folder); server.start(); server.kill(); server.start()
def test_x(s3):              a fresh folder (``s3.uri``) in it, credentials in the environment
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import SystemRandom

import pytest

from lensprep.errors import StorageError
from lensprep.store import S3Options
from lensprep.store.s3 import S3Store
from lensprep.transfer import upload

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret-never-shown"
BUCKET = "bucket"
_PORTS = ("master", "volume", "filer", "s3", "https", "admin")
_START_SECONDS = 60.0


class S3Server:
    """One server of its own; its objects stay in ``folder`` when it is killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self.certificate = folder / "certificate.pem"
        self._make_files()

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def https(self) -> str:
        return f"https://127.0.0.1:{self.ports['https']}"

    def _make_files(self) -> None:
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "tests", "credentials": credentials, "actions": actions}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", self.folder / "key.pem", "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip

    def start(self) -> None:
        ports, log = self.ports, (self.folder / "weed.log").open("ab")
        command = [
            Path(sys.executable).with_name("weed"), "-logtostderr", "mini", f"-dir={self.folder}",
            # Its defaults are telemetry, and all addresses.
            "-master.telemetry=false", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{name}.port={port}" for name, port in ports.items() if name != "https"),
            f"-s3.config={self.folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.port.https={ports['https']}", f"-s3.key.file={self.folder / 'key.pem'}",
            f"-s3.cert.file={self.certificate}", "-admin.ui=false", "-webdav=false",
        ]  # fmt: skip
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self._wait()

    def _wait(self) -> None:
        """Ready means that a write and a read work."""
        deadline = time.monotonic() + _START_SECONDS
        options = S3Options(endpoint_url=self.http, attempts=1)
        while True:
            try:
                store = S3Store(f"s3://{BUCKET}/ready", options)
                make_bucket(store, BUCKET)
                store.write("ready", b"yes")
                assert store.read("ready") == b"yes"
                return
            except StorageError:
                assert self.process is not None
                alive = self.process.poll() is None
                log = (self.folder / "weed.log").read_text(errors="replace")[-2000:]
                assert alive, f"the server ended: {log}"
                assert time.monotonic() < deadline, f"the server did not start: {log}"
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        for port in self.ports.values():  # a killed server leaves its sockets behind
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)
            for path in Path("/tmp").glob(f"seaweedfs-*-{port + 10_000}.sock"):
                path.unlink(missing_ok=True)


def make_bucket(store: S3Store, bucket: str) -> None:
    try:
        store.client.create_bucket(Bucket=bucket)
    except store.client.exceptions.ClientError as error:
        if "BucketAlready" not in str(error):
            raise StorageError(str(error)) from error
    except Exception as error:
        raise StorageError(str(error)) from error


def free_ports(count: int) -> list[int]:
    """Ports that are free, and so is each plus 10,000, which the server takes for gRPC.

    All lie below those that systems lend to outgoing connections (32,768 and more).
    """
    found: list[int] = []
    while len(found) < count:
        port = SystemRandom().randrange(12_000, 22_700)
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass
class Place:
    """An empty folder of the server, for one test."""

    server: S3Server
    uri: str = field(default_factory=lambda: f"s3://{BUCKET}/{secrets.token_hex(6)}")

    def options(self, **changes: object) -> S3Options:
        settings: dict[str, object] = {"endpoint_url": self.server.http, "read_timeout_s": 2.0}
        return S3Options(**{**settings, **changes})  # type: ignore[arg-type]

    def store(self, **changes: object) -> S3Store:
        return S3Store(self.uri, self.options(**changes))


@contextmanager
def uploaded(server: S3Server, root: Path | str) -> Iterator[str]:
    """Upload a dataset for several tests, none of which changes it; gives its URI."""
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, server)
        place = Place(server)
        upload(root, place.uri, place.options())
        yield place.uri


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    from botocore.loaders import create_loader  # here, as the machine for GPU tests may lack it

    folder = Path(tempfile.mkdtemp(prefix="lensprep-s3-"))
    server = S3Server(folder)
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, server)
        server.start()
    try:
        # Each test has clients of its own, which need not each read botocore's data and keep it.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("botocore.session.create_loader", cache(create_loader))
            yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def set_environment(patch: pytest.MonkeyPatch, server: S3Server) -> None:
    """The AWS variables of a test, and nothing of the person who runs it."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    patch.setenv("AWS_CA_BUNDLE", str(server.certificate))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", str(server.folder / "no-config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(server.folder / "no-credentials"))
    patch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    disk = shutil.disk_usage(s3_server.folder)
    # It would refuse each write, which our client tries again for a minute.
    assert disk.free > disk.total / 100, "the server takes no writes: 99 % of its disk are full"
    set_environment(monkeypatch, s3_server)
    return Place(s3_server)
