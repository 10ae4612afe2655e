"""The comparison with other loaders: whoever does not deliver the stamps is not timed."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.peers import check, compare, main, rate, table
from tests.benchmarks.readers import (
    CheapWebDataset,
    Ffcv,
    HuggingFace,
    HuggingFaceBytes,
    Limit,
    LitData,
    Mosaic,
    Ours,
    OursBlock,
    Reader,
    Seed,
    StockWebDataset,
)
from tests.benchmarks.stamps import make_stamps

ROWS = 512
ALWAYS = (
    Seed, StockWebDataset, CheapWebDataset, HuggingFace, HuggingFaceBytes, Ours, OursBlock, Limit,
)  # fmt: skip

# Stock webdataset leaves its files to the garbage collector to close.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    return make_stamps(tmp_path_factory.mktemp("stamps"), ROWS)


@pytest.mark.slow
def test_readers_deliver_every_stamp_and_get_a_row(stamps):
    rows = compare(stamps, rounds=1, seconds=0.01, kinds=ALWAYS, tell=lambda what: None)
    assert [row["left_out"] for row in rows] == [None] * len(ALWAYS)
    lines = table(rows)
    assert len(lines) == 2 + len(ALWAYS)
    stock = next(line for line in lines if "webdataset, stock" in line)
    assert stock.endswith("| 1.0 |")


@pytest.mark.parametrize("kind", [LitData, Mosaic, Ffcv])
def test_a_reader_that_is_not_installed_is_left_out_with_the_reason(stamps, kind, monkeypatch):
    module = {LitData: "litdata", Mosaic: "streaming", Ffcv: "ffcv"}[kind]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    rows = compare(stamps, rounds=1, seconds=0.01, kinds=(kind,), tell=lambda what: None)
    assert "left out: not installed: " in table(rows)[2]


class Faulty(Reader):
    """Delivers the stamps in a random order, but for a fault."""

    title = "faulty"

    def change(self, pixels, labels):
        raise NotImplementedError

    def epoch(self):
        for rows in self.orders():
            pixels = torch.from_numpy(self.stamps.pixels[rows])
            yield self.change(pixels, torch.from_numpy(self.stamps.labels[rows]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, n: (p[:-1], n[:-1]), "510 stamps came of 512"),
        (lambda p, n: (p[[1, *range(1, len(p))]], n[[1, *range(1, len(n))]]), "missing or altered"),
        (lambda p, n: (p + 1e-3, n), "missing or altered"),
        (lambda p, n: (p, 1 - n), "missing or altered"),
        (lambda p, n: (p.float(), n), "gives torch.float32"),
    ],
)
def test_a_reader_that_does_not_deliver_the_stamps_ends_the_comparison(stamps, change, message):
    reader = Faulty(stamps)
    reader.change = change
    with pytest.raises(SystemExit, match=message):
        check(reader)
    reader.change = lambda pixels, labels: (pixels, labels)
    check(reader)
    assert rate(reader, 0.01) > 0


def test_a_reader_that_does_not_shuffle_ends_the_comparison(stamps):
    reader = Limit(stamps)
    reader.permutation = lambda: torch.arange(ROWS).numpy()
    with pytest.raises(SystemExit, match="not shuffled"):
        check(reader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rows", "300"], "multiple of 256"), (["--only", "Other"], "no reader Other; there are: ")],
)
def test_a_mistake_in_the_arguments_is_told(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.peers.pin", lambda: None)
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
