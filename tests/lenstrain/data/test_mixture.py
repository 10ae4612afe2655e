"""Rates by origin or expression: what an epoch holds of each, exactly, in every epoch."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from lensprep.configfile import load_config
from lensprep.dataset.writer import write_dataset
from lensprep.errors import ConfigError
from lenstrain.config import Config
from lenstrain.data import StampLoader
from lenstrain.training.train import train
from tests.datasets import SPEC, tiny_dataset, tiny_pixels, tiny_table
from tests.lenstrain.data.epochs import real_index, rest_after
from tests.lenstrain.training.conftest import TINY

ROWS, REAL = 120, 12
"""Rows of the training split; its first are real: 3 rings, 9 of no kind, half of each lenses."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    root, splits = tmp_path_factory.mktemp("data") / "mixed", {}
    for split, rows in (("train", ROWS), ("val", 40)):
        origin = np.where(np.arange(rows) < REAL, "real", "simulated").tolist()
        origin[REAL], origin[REAL + 1] = None, ""
        kind = ["ring"] * 3 + [None] * (rows - 3)
        table = tiny_table(rows, split)
        table = table.append_column("origin", pa.array(origin, pa.string()))
        table = table.append_column("kind", pa.array(kind, pa.string()))
        splits[split] = tiny_pixels(rows, labels=table["label"].to_numpy()), table
    write_dataset(root, splits, SPEC, shard_rows=50)
    return root


def make_config(rates):
    return load_config(Config, None, [*TINY, f"data.rates={rates}"])


def counts(loader):
    return np.bincount(real_index(loader), minlength=ROWS)


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_rows_of_an_origin_come_as_often_as_their_rate_says(mixed, shuffle):
    loader = StampLoader(mixed, batch_size=16, shuffle=shuffle, rates={"real": 10, "simulated": 1})
    share = 10 * REAL / (10 * REAL + ROWS - REAL)
    for epoch in range(3):
        times = counts(loader)
        assert times.sum() == ROWS
        assert abs(times[:REAL].sum() - share * ROWS) < 1
        assert np.ptp(times[:REAL]) <= 1  # each as often as the others
        assert loader.composition(epoch)["real"]["rows"] == times[:REAL].sum()


def test_rates_by_expression_multiply_and_count_apart(mixed):
    rates = {"real": 2, "kind == 'ring'": 5, "label == 1 and origin == 'real'": 0}
    loader = StampLoader(mixed, batch_size=10, rates=rates)
    weight = np.r_[10.0, 0, 10, np.tile([0.0, 2], 5)[:9], np.ones(ROWS - REAL)]
    weight[1:REAL:2], weight[4:REAL:2] = 0, 2
    totals = sum(counts(loader) for _ in range(20)) / 20
    assert totals[:3] == pytest.approx(weight[:3] * ROWS / weight.sum(), abs=0.5)
    assert not totals[weight == 0].any()
    held = loader.composition(0)
    assert {*held} == {*rates, "simulated"}
    assert held["real"]["rows"] == held["kind == 'ring'"]["rows"] + totals_of(loader, weight == 2)
    assert held["label == 1 and origin == 'real'"] == {
        "rows": 0, "lenses": 0, "distinct": 0, "share": 0.0,
    }  # fmt: skip
    assert held["kind == 'ring'"]["distinct"] == 2


def totals_of(loader, mask):
    loader.set_epoch(0)
    return counts(loader)[mask].sum()


def test_balance_weights_and_rates_hold_together(mixed):
    weights = np.where(np.arange(ROWS) == ROWS - 1, 3.0, 1.0)
    options = {"rates": {"real": 4}, "sampling": "balanced", "weights": weights}
    times = counts(StampLoader(mixed, batch_size=10, **options))
    lens = np.arange(ROWS) % 2 == 1
    assert abs(times[lens].sum() - ROWS / 2) <= 1
    assert times[:REAL][lens[:REAL]].sum() == pytest.approx(60 * 24 / (24 + 54 + 2), abs=1)
    assert times[-1] >= 2


def test_epochs_are_divided_and_resumed_like_any_other(mixed):
    options = {"rates": {"real": 3, "label == 0": 2}}
    whole = [b.index for b in StampLoader(mixed, "train", 12, 3, **options)]
    parts = [
        [b.index for b in StampLoader(mixed, "train", 4, 3, rank=rank, world_size=3, **options)]
        for rank in range(3)
    ]
    for step, index in enumerate(whole):
        assert torch.equal(index, torch.cat([part[step] for part in parts]))
    state, rest = rest_after(StampLoader(mixed, "train", 12, 3, **options), 4)
    resumed = StampLoader(mixed, "train", 12, 3, **options)
    resumed.load_state_dict(state)
    assert [b.index.tolist() for b in resumed] == [i.tolist() for i in rest]


def test_equal_rates_order_an_epoch_of_every_row_once(mixed):
    loader = StampLoader(mixed, batch_size=10, rates={"real": 2, "simulated": 2})
    assert (counts(loader) == 1).all()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"reel": 2}, "no rows of origin 'reel'; it has: real 12, simulated 108"),
        ({"kind == 'spiral'": 2}, "\"kind == 'spiral'\" keeps no row of split 'train'"),
        ({"knd == 'ring'": 2}, "Did you mean kind"),
        ({"real": -1}, "the rate of 'real' must be 0 or more, got -1"),
        ({"real": float("inf")}, "must be 0 or more, got inf"),
        ({"real": "ten"}, "rates.real must be of type float"),
        ({"real": 0, "simulated": 0}, "every rate is 0"),
        ({f"label == {n}": 1 for n in range(17)}, "may have 16 at most"),
    ],
)
def test_rates_that_do_not_fit_are_refused(mixed, rates, message):
    with pytest.raises(ConfigError, match=message):
        StampLoader(mixed, rates=rates)


def test_a_dataset_without_origins_is_simulated(tmp_path):
    root = tiny_dataset(tmp_path)
    loader = StampLoader(root, batch_size=10, rates={"simulated": 7})
    assert sorted(real_index(loader)) == list(range(100))
    assert StampLoader(root).composition(0) == {}
    with pytest.raises(ConfigError, match="no rows of origin 'real'; it has: simulated 100"):
        StampLoader(root, rates={"real": 2})


def test_a_run_logs_its_mixture(mixed, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "run"
    train(str(mixed), make_config("{real=10, simulated=1}"), out)
    assert "an epoch has real 63 (52.5%, " in caplog.text
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
    for line in epochs:
        assert line["mixture"]["real"]["rows"] in (63, 64)
        assert sum(part["rows"] for part in line["mixture"].values()) == ROWS
    assert "[data.rates]\nreal = 10.0\nsimulated = 1.0" in (out / "config.toml").read_text()
    again = train(str(mixed), make_config("{real=10, simulated=1}"), out, resume=True)
    assert again["status"] == "completed"


def test_a_run_whose_rates_leave_one_class_is_refused(mixed, tmp_path):
    config = make_config('{"label == 1" = 0}')
    with pytest.raises(ConfigError, match="no lens left with data"):
        train(str(mixed), config, tmp_path / "run")
