"""Checks of the dataset on stamps of other surveys: one band of odd side, and six small ones."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from lensprep.dataset import DECALS, Dataset
from lensprep.dataset.normalization import normalization_spec
from lensprep.dataset.writer import write_dataset
from lenstrain.audit import copies, data, hosts, leaks, sky
from lenstrain.audit.config import AuditConfig, DataThresholds
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError
from tests.lenstrain.audit.conftest import SPLITS
from tests.lenstrain.probes.conftest import RUBIN, VIS, make_sample

CONFIG = AuditConfig(resamples=50)
ROWS = 120


def write(folder, geometry, without=(), change=None):
    """A sound dataset of three splits, with everything that checks read."""
    spec, parts = normalization_spec("asinh_survey", geometry=geometry), {}
    for number, split in enumerate(SPLITS):
        sample = make_sample(ROWS, number, spec, geometry)
        lens = sample.labels == 1
        columns = {name: sample.table[name] for name in sample.table.column_names} | {
            "key": [f"{number + 1:x}{i:031x}" for i in range(ROWS)],
            "region_id": pa.array(1000 * number + np.arange(ROWS) // 6, pa.int32()),
            "lens_model": np.where(lens, "SIE", "CONTROL").tolist(),
        }
        clipped = np.zeros(ROWS, np.float32)
        columns |= dict.fromkeys(geometry.band_columns("clip_frac"), clipped)
        table = pa.table({name: value for name, value in columns.items() if name not in without})
        parts[split] = (sample.pixels, table)
    if change is not None:
        change(parts)
    write_dataset(folder / "ds", parts, spec, shard_rows=50, geometry=geometry)
    return Evidence(folder / "run", Dataset.open(folder / "ds"))


@pytest.fixture(scope="module", params=[VIS, RUBIN], ids=["vis", "rubin"])
def evidence(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("survey"), request.param)


def test_sound_stamps_of_other_surveys_pass(evidence):
    checks = (data.check_schema, data.check_split_disjoint, sky.check_sky_probe,
              sky.check_normalization, copies.check_near_duplicates)  # fmt: skip
    for check in checks:
        found = check(evidence, CONFIG)
        assert found.passed, found.detail


def test_gaps_are_named_after_the_bands_of_the_survey(evidence):
    bands = {*evidence.geometry.bands}
    assert {*sky.check_sky_probe(evidence, CONFIG).measured["level_gap"]} == bands
    assert {*hosts.check_norm_stat_probe(evidence, CONFIG).measured["clip_gap"]} == bands


def test_light_of_arcs_is_added_in_every_band(evidence):
    made = hosts.compared(evidence, CONFIG)
    added = (made.injected.flux() - made.controls.flux()).sum((2, 3))
    flux = float(np.nanmax(made.lenses.numbers("total_injected_flux_r")))
    assert np.allclose(added, flux, rtol=0.05)


def test_statistics_of_all_bands_are_no_metadata(evidence):
    assert leaks.norm_stats(RUBIN)[:3] == ("median_u", "median_g", "median_r")
    used = leaks.check_metadata_probe(evidence, CONFIG).measured["columns"]
    assert not {*leaks.norm_stats(evidence.geometry)} & {*used}


def test_turned_copies_in_another_split_are_found(tmp_path):
    def plant(parts):
        source = parts["train"][0][:10]
        parts["test"][0][:10] = np.rot90(source, 1, axes=(-2, -1))

    found = copies.check_near_duplicates(write(tmp_path, VIS, change=plant), CONFIG)
    assert found.measured["pairs"]["train-test"] == 10


def test_a_missing_column_of_a_band_is_a_fault_that_is_named(tmp_path):
    found = data.check_schema(write(tmp_path, RUBIN, ("clip_frac_y",)), CONFIG)
    assert not found.passed
    assert "lacks clip_frac_y" in found.detail


def test_without_colours_of_sources_hosts_are_not_compared(tmp_path):
    evidence = write(tmp_path, RUBIN, ("src_ri",))
    for check in (hosts.check_brightness_only, hosts.check_norm_stat_probe):
        with pytest.raises(NotRunError, match="the sidecar lacks src_ri"):
            check(evidence, CONFIG)


def test_splits_must_lie_a_diagonal_apart_unless_told_otherwise(evidence):
    def limit(config):
        return data.check_split_disjoint(evidence, config).threshold["nearest_arcsec"]

    assert limit(CONFIG) == round(evidence.geometry.diagonal_arcsec, 1)
    assert limit(AuditConfig(data=DataThresholds(min_separation_arcsec=60.0))) == 60.0
    assert round(DECALS.diagonal_arcsec, 1) == 23.7


@pytest.mark.parametrize("extra", [0, 1])
def test_the_network_may_see_the_bands_of_the_survey_and_nothing_else(evidence, extra):
    channels = len(evidence.geometry.bands) + extra
    content = {"model": {"stem": torch.zeros(4, channels, 3, 3)}}
    config = SimpleNamespace(data=SimpleNamespace(where=""))
    known = SimpleNamespace(checkpoint=content, geometry=evidence.geometry, config=config)
    found = data.check_forbidden_inputs(known, CONFIG)
    assert found.passed is (extra == 0)
    assert found.threshold["channels"] == channels - extra
