"""A network that lies: answers altered, cut, misdirected, or a login page, and lines that break.

What comes through is right, or is refused in one line; never other bytes. Conversion through such a
network: `tests.faults.test_conversion`.
"""

from __future__ import annotations

import filecmp
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from lensprep.dataset import Dataset
from lensprep.errors import ProjectError
from lensprep.store.transfer import run_files, upload_file
from lensprep.transfer import dataset_files, download, upload
from lenstrain.data import StampLoader
from tests.datasets import dataset_fixture
from tests.faultproxy import ALWAYS, DRAWN, Fault

ROWS = {"train": 150, "val": 30}


def lies(share, seed):
    """Faults by name, each of which befalls so large a share of the requests."""

    def one(kind, match=b"GET ", **more):
        return Fault(kind, match, times=ALWAYS, share=share, seed=seed, **more)

    return {
        "alter": one("alter", after=DRAWN),
        "alter-request": one("alter-request", b"PUT ", after=DRAWN),
        "cut": one("cut", after=DRAWN),
        "misdirect": one("misdirect"),
        "page": one("html", b""),
        "page-with-etag": one("html", head=b'ETag: "0"\r\n', length=False),
        "no-etag": one("drop-header", b"", header=b"ETag"),
    }


def through(*kinds):
    """In short all kinds, each one request in twenty; in long each kind alone, one in ten."""
    long = [pytest.param((kind,), range(40), 0.1, marks=pytest.mark.faults, id=kind)
            for kind in kinds]  # fmt: skip
    short = pytest.param(kinds, range(1), 0.05, id="all")
    return pytest.mark.parametrize(("kinds", "seeds", "share"), [short, *long])


reading = through("alter", "cut", "misdirect", "page", "page-with-etag", "no-etag")
writing = through("alter", "alter-request", "misdirect", "page", "no-etag")


root = dataset_fixture(ROWS, 30)


class Trials:
    """Runs what must be right or refused, once a seed, and counts how it ended."""

    def __init__(self, proxy, kinds, seeds, share):
        self.proxy, self.kinds, self.seeds, self.share = proxy, kinds, seeds, share
        self.ends = Counter()

    def run(self, attempt, refused=lambda seed: None):
        for seed in self.seeds:
            faults = lies(self.share, seed)
            self.proxy.clear()
            self.proxy.add(*(faults[kind] for kind in self.kinds))
            try:
                attempt(seed)
                self.ends["right"] += 1
                continue
            except ProjectError as error:
                text = str(error)
            assert "s3://" in text
            assert "\n" not in text
            refused(seed)
            self.ends["refused"] += 1
            print(seed, text)
        assert self.proxy.happened
        print(*self.kinds, dict(self.ends), dict(self.proxy.happened), sep="\n")
        # Most faults are got over; else refusing everything would pass.
        assert self.ends["right"] >= 0.8 * len(self.seeds)


@pytest.fixture
def trials(proxy, kinds, seeds, share):
    return Trials(proxy, kinds, seeds, share)


@reading
def test_an_epoch_gives_the_batches_that_were_written_or_is_refused(s3, root, proxy, trials):
    upload(root, s3.uri, s3.options())
    expected = list(StampLoader(root, batch_size=32, seed=1))

    def epoch(seed):
        options = s3.options(endpoint_url=proxy.url)
        loader = StampLoader(s3.uri, batch_size=32, seed=1, s3=options)
        try:
            for ours, theirs in zip(loader, expected, strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    assert torch.equal(a, b), f"seed {seed}"
        finally:
            loader.close()

    trials.run(epoch)


@reading
def test_a_download_is_the_dataset_or_no_dataset(s3, root, proxy, trials, tmp_path):
    upload(root, s3.uri, s3.options())

    def fetch(seed):
        there = tmp_path / str(seed)
        download(s3.uri, str(there), s3.options(endpoint_url=proxy.url))
        assert_equal(root, there)

    def check(seed):
        assert not (tmp_path / str(seed) / "manifest.json").exists()

    trials.run(fetch, check)


@writing
def test_an_upload_is_the_dataset_or_the_same_command_makes_it_so(
    s3, root, proxy, trials, tmp_path
):
    def send(seed, **options):
        uri, there = f"{s3.uri}/{seed}", tmp_path / str(seed)
        upload(root, uri, s3.options(**options))
        download(uri, str(there), s3.options())
        assert_equal(root, there)

    trials.run(partial(send, endpoint_url=proxy.url), send)


def assert_equal(root, there):
    names = ["manifest.json", *(file.name for file in dataset_files(Dataset.open(root).manifest))]
    assert filecmp.cmpfiles(root, there, names, shallow=False)[1:] == ([], [])


@pytest.mark.faults
def test_uploads_get_through_connections_that_break_every_0_4_seconds(s3, proxy, tmp_path):
    paths = [tmp_path / f"file-{number}" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(np.random.default_rng(number).bytes(100 << 20))
    proxy.break_after_s = 0.4
    for run in range(5):
        store = s3.store(endpoint_url=proxy.url)
        names = [f"{run}-{path.name}" for path in paths]
        pairs = list(zip(paths, names, strict=True))
        run_files(store, [partial(upload_file, store, path, name) for path, name in pairs])
        for path, name in pairs:
            assert s3.store().read(name) == path.read_bytes()
            s3.store().delete(name)
