"""Moving a dataset to and from an object store beside one plain large object of the same size.

    python -m tests.benchmarks.bench_s3_transfer [--mb 400] [--rounds 3] [--folder DIR]

All in one run, in turn, with the same server on loopback (client, server and disk share the
machine), the same connection, part size and number of requests at once:

    dataset    `lensprep upload` and `download`: shards with their digests, the manifest last
    plain      one object of as many bytes by the same client, in parts, to and from a plain file:
               no digest, nothing forced to the disk
    boto3      the same with boto3's own `upload_file` and `download_file`

Prints medians, and each contestant's share of `plain`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from lensprep.dataset.layout import RECORD_STRIDE
from lensprep.store import PART_BYTES, Piece, S3Options
from lensprep.store.s3 import S3Store
from lensprep.store.transfer import upload_parts
from lensprep.transfer import download, upload
from tests.datasets import tiny_dataset
from tests.s3server import S3Server, set_environment


def plain_upload(store: S3Store, path: Path, name: str) -> None:
    """One file in parts, by the same client."""
    with path.open("rb") as file:
        parts = iter(lambda: file.read(PART_BYTES), b"")
        upload_parts(store, name, parts, path.stat().st_size)


def plain_download(store: S3Store, name: str, path: Path) -> None:
    """One object in ranges, each written where it belongs, by the same client."""
    size = store.stat(name).bytes
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    buffers: list[bytearray] = []

    def copy(start: int) -> None:
        length = min(PART_BYTES, size - start)
        memory = buffers.pop() if buffers else bytearray(PART_BYTES)
        view = memoryview(memory)[:length]
        store.fill(Piece(name, start, view))
        os.pwrite(descriptor, view, start)
        buffers.append(memory)

    jobs = [store.connection.threads.submit(copy, at) for at in range(0, size, PART_BYTES)]
    store.connection.results(jobs)
    os.close(descriptor)


def boto3_config(store: S3Store):
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=store.options.connections,
        io_chunksize=1 << 20,
        preferred_transfer_client="classic",
    )


def measure(uri: str, options: S3Options, source: Path, folder: Path, rounds: int) -> dict:
    """Seconds of every contestant in every round."""
    store = S3Store(uri, options)
    large = folder / "large"
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with large.open("wb") as file:
        for path in sorted(source.rglob("*.tar")):
            file.write(path.read_bytes())
        file.write(bytes(size - file.tell()))
    client, config = store.client, boto3_config(store)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, function, *arguments, **more) -> None:
        os.sync()  # what came before does not weigh on what comes now
        started = time.perf_counter()
        function(*arguments, **more)
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    for number in range(-1, rounds):
        here, there = folder / f"back{number}", f"{uri}/round{number}"
        key = store.key(f"boto3-{number}")
        timed("upload plain", plain_upload, store, large, f"plain-{number}")
        timed("upload dataset", upload, str(source), there, options)
        timed("upload boto3", client.upload_file, str(large), store.bucket, key, Config=config)
        timed("download plain", plain_download, store, f"plain-{number}", folder / "plain")
        timed("download dataset", download, there, str(here), options)
        timed(
            "download boto3", client.download_file, store.bucket, key, str(folder / "boto3"),
            Config=config,
        )  # fmt: skip
        shutil.rmtree(here)
        for path in ("plain", "boto3"):
            (folder / path).unlink()
        for entry in store.entries():
            store.delete(entry.name)
        if number < 0:
            seconds.clear()  # the first one warms up
    return {"bytes": size, "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=400, help="size of the dataset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write, and to clean up")
    parser.add_argument("--https", action="store_true")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-s3-", dir=asked.folder))
    (folder / "server").mkdir()
    server = S3Server(folder / "server")
    try:
        with pytest.MonkeyPatch.context() as patch:
            set_environment(patch, server)
            server.start()
            rows = asked.mb * 1_000_000 // RECORD_STRIDE
            source = tiny_dataset(folder, {"train": rows * 3 // 4, "val": rows // 4}, 8192 // 2)
            options = S3Options(endpoint_url=server.https if asked.https else server.http)
            found = measure("s3://bucket/bench", options, source, folder, asked.rounds)
    finally:
        server.kill()
        shutil.rmtree(folder)
    found["machine"] = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    medians = {name: median(values) for name, values in found["seconds"].items()}
    print(f"{found['bytes'] / 1e6:.0f} MB, {asked.rounds} rounds, {found['machine']}")
    for name, value in medians.items():
        plain = medians[f"{name.split()[0]} plain"]
        runs = np.array(found["seconds"][name.split()[0] + " plain"]) / found["seconds"][name]
        print(
            f"{name:<18}{found['bytes'] / value / 1e6:8.0f} MB/s   {plain / value:5.2f} of plain "
            f"({runs.min():.2f} to {runs.max():.2f})"
        )
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
