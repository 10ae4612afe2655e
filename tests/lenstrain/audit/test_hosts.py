"""Brightness and statistics beside non-lenses with arcs: injections pass, other hosts fail."""

import numpy as np
import pytest

from lensprep.dataset.normalization import MODES, normalization_spec
from lenstrain.audit import hosts
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError
from tests.lenstrain.audit.conftest import make_dataset
from tests.lenstrain.audit.stamps import make_stamps, write_stamps


@pytest.fixture(scope="module", params=MODES)
def stamps(request):
    """A normalisation, and pixels and table of sound stamps in it."""
    spec = normalization_spec(request.param)
    return spec, *make_stamps(spec=spec)["train"]


@pytest.fixture(scope="module")
def evidence(stamps, tmp_path_factory):
    """Evidence over them; what checks have in common is made in it once."""
    spec, *part = stamps
    folder = tmp_path_factory.mktemp("hosts")
    return Evidence(folder / "run", write_stamps(folder / "ds", {"train": part}, spec))


@pytest.mark.parametrize("check", [hosts.check_brightness_only, hosts.check_norm_stat_probe])
def test_the_light_of_arcs_is_no_leak(evidence, config, check):
    found = check(evidence, config)
    assert found.passed, found.detail
    # Statistics tell less where arcs clip no pixel.
    assert found.measured["without_injection"] > 0.55


def test_brighter_hosts_are_found(tmp_path, config):
    """Only the fainter half of the non-lenses is kept."""

    def faint(flux, labels):
        light = flux[:, 1, 22:42, 22:42].sum((1, 2))
        return (labels == 1) | (light < np.median(light[labels == 0]))

    dataset = write_stamps(tmp_path / "ds", make_stamps(select=faint))
    found = hosts.check_brightness_only(Evidence(tmp_path, dataset), config)
    assert not found.passed
    assert "other hosts" in found.detail


def test_other_statistics_of_lenses_are_found(stamps, tmp_path, config):
    spec, pixels, table = stamps
    lens = table["label"].to_numpy() == 1
    for band in "grz":
        at = table.column_names.index(f"scale_{band}")
        values = table[f"scale_{band}"].to_numpy() * np.where(lens, 1.3, 1.0)
        table = table.set_column(at, f"scale_{band}", [values.astype("f4")])
    dataset = write_stamps(tmp_path / "ds", {"train": (pixels, table)}, spec)
    found = hosts.check_norm_stat_probe(Evidence(tmp_path, dataset), config)
    assert not found.passed


def test_what_was_injected_must_be_known(tmp_path, config):
    with pytest.raises(NotRunError, match="total_injected_flux_r"):
        hosts.check_brightness_only(Evidence(tmp_path, make_dataset(tmp_path / "ds")), config)


def test_lenses_without_injected_flux_are_not_run(tmp_path, config):
    """Real lenses: the column is there and empty."""
    pixels, table = make_stamps()["train"]
    at = table.column_names.index("total_injected_flux_r")
    empty = np.full(table.num_rows, np.nan)
    dataset = write_stamps(tmp_path / "ds", {"train": (pixels, table.set_column(
        at, "total_injected_flux_r", [empty]))})  # fmt: skip
    with pytest.raises(NotRunError, match="what arcs explain"):
        hosts.check_brightness_only(Evidence(tmp_path, dataset), config)


def test_an_arc_moves_the_statistics_as_conversion_would(evidence, config):
    made = hosts.compared(evidence, config)
    true, bare, added = (
        np.median(hosts.statistics(s), axis=0) for s in (made.lenses, made.controls, made.injected)
    )
    # No arc reaches the annulus.
    assert (added[:6] > bare[:6]).all() or made.lenses.spec.mode == "mad_annulus"
    np.testing.assert_allclose(added[3:6], true[3:6], rtol=0.01)
    np.testing.assert_allclose(added[6:], true[6:], rtol=0.2)
