"""Probes look at ordinary rows alone: they find the same with and without counterfactuals."""

import numpy as np
import pytest

from lensprep.dataset import Dataset
from lensprep.dataset.layout import COUNTERFACTUAL
from lensprep.dataset.writer import write_dataset
from lenstrain.probes.profiles import read_light
from lenstrain.probes.sample import draw_sample, find_partners
from tests.datasets import SPEC, tiny_pixels
from tests.familydatasets import family_table

ROWS = 60


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same rows without and with counterfactuals; every lens has its host as a partner."""
    folder, table = tmp_path_factory.mktemp("data"), family_table(ROWS, 10)
    number = np.r_[np.arange(ROWS) // 2, np.repeat(np.arange(10), 3)]
    table = table.append_column("ra", [150.0 + number]).append_column("dec", [2.0 + 0 * number])
    table = table.append_column("pixel_hash", [[f"{i:02d}" for i in range(table.num_rows)]])
    pixels = tiny_pixels(table.num_rows)
    mixed = np.r_[np.arange(70, 90), np.arange(70)]
    ordinary = table.slice(0, ROWS).drop_columns([COUNTERFACTUAL])
    write_dataset(folder / "alone", {"train": (pixels[:ROWS], ordinary)}, SPEC, shard_rows=20)
    made = {"train": (pixels[mixed], table.take(mixed))}
    write_dataset(folder / "families", made, SPEC, shard_rows=20)
    return [Dataset.open(folder / name) for name in ("alone", "families")]


def test_the_same_stamps_are_drawn(both):
    alone, families = (draw_sample(dataset, "train", 12, seed=3) for dataset in both)
    assert families.table["key"].equals(alone.table["key"])
    np.testing.assert_array_equal(families.pixels, alone.pixels)
    assert len(draw_sample(both[1], "train", 1000, seed=3).labels) == ROWS


def test_the_partner_of_a_lens_is_its_host_and_no_counterfactual_of_it(both):
    found = [find_partners(dataset, draw_sample(dataset, "train", 30, seed=0)) for dataset in both]
    (rows, alone), (same_rows, partners) = found
    assert len(rows) == ROWS // 2
    np.testing.assert_array_equal(same_rows, rows)
    assert partners.table["key"].equals(alone.table["key"])


def test_light_profiles_are_those_of_ordinary_rows(both):
    alone, families = (read_light(dataset, "train", 40, 6.0) for dataset in both)
    np.testing.assert_array_equal(families.labels, alone.labels)
    for name, values in alone.features.items():
        np.testing.assert_array_equal(families.features[name], values)
    assert len(read_light(both[1], "train", 1000, 6.0).labels) == ROWS
