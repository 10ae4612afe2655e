"""Noise that is not the survey's: doubted in one line, and no bytes depend on it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.convert.noise import find_doubt, measure
from lensprep.dataset.geometry import DECALS
from lensprep.dataset.normalization import normalization_spec
from tests.lensprep.convert.conversions import digests
from tests.surveytree import survey_pixels, tiny_survey, write_survey_tree

SPEC = normalization_spec("asinh_survey")


def rows(factor=1.0, clipped=0.0, n=5):
    """Sidecar rows whose noise is so many times the softenings."""
    columns = {}
    for band, noise in zip(DECALS.bands, DECALS.sky_noise, strict=True):
        columns[f"scale_{band}"] = np.full(n, noise * factor, np.float32)
        columns[f"clip_frac_{band}"] = np.full(n, clipped, np.float32)
    return pa.table(columns)


def doubt(*tables, spec=SPEC):
    return find_doubt([measure([table], DECALS) for table in tables], spec, DECALS)


def test_medians_are_over_the_rows_of_all_batches():
    tables = [rows(1, 0.5, 2), rows(), rows(3, n=2), rows(2, n=2)]
    assert measure(tables[:1] + tables[2:], DECALS) == {
        "rows": 6,
        "scale": {b: pytest.approx(2 * n) for b, n in zip("grz", DECALS.sky_noise, strict=True)},
        "clip_frac": dict.fromkeys("grz", 0.0),
    }
    assert measure([], DECALS) is measure([rows(n=0)], DECALS) is None


@pytest.mark.parametrize("factor", [0.21, 0.5, 1, 2, 4.9])
def test_noise_as_surveys_vary_is_not_doubted(factor):
    assert doubt(rows(factor)) is None
    assert doubt(rows(clipped=0.0099)) is None
    assert find_doubt([], SPEC, DECALS) is None


@pytest.mark.parametrize("factor", [0.19, 1e-3, 5.1, 63])
def test_noise_of_another_unit_is_named_with_the_remedy(factor):
    assert doubt(rows(factor)) == (
        "Is this another unit or depth than that of decals? By asinh_survey, "
        f"the noise of g is {0.0019 * factor:.2g}, its softening 0.0019; "
        f"the noise of r is {0.0028 * factor:.2g}, its softening 0.0028; "
        f"the noise of z is {0.0087 * factor:.2g}, its softening 0.0087. State the sky_noise that "
        "is measured here in a --survey file, or use --normalize mad_stamp."
    )


def test_stamps_that_are_clipped_are_named():
    found = doubt(rows(clipped=0.03))
    assert "3% of the median stamp are clipped in g; 3% of" in found
    assert "the noise of" not in found


def test_modes_that_measure_each_stamp_are_not_doubted():
    for mode in ("mad_stamp", "mad_annulus", "sqrt"):
        assert doubt(rows(100, 0.5), spec=normalization_spec(mode)) is None


def test_tasks_count_by_their_rows_in_any_order():
    small, large = rows(100, n=3), rows(1, n=4)
    assert doubt(small, large) is doubt(large, small) is None
    small, large = rows(1, n=3), rows(100, n=4)
    assert doubt(small, large) == doubt(large, small) != None  # noqa: E711


@pytest.mark.parametrize("mode", ["asinh_survey", "mad_stamp"])
def test_conversion_of_another_unit_says_so_and_does_it(tmp_path, caplog, monkeypatch, mode):
    survey = tiny_survey("ground", "gr", side=32)
    write_survey_tree(tmp_path / "right", survey, rows=24)
    monkeypatch.setattr(
        "tests.surveytree.survey_pixels", lambda *given: 100 * survey_pixels(*given)
    )
    write_survey_tree(tmp_path / "wrong", survey, rows=24)
    config = ConvertConfig(survey=survey, shard_rows=20, normalize=mode, max_reject_rate=1.0)
    convert(str(tmp_path / "right"), str(tmp_path / "a"), config, workers=1)
    assert caplog.messages == []
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 8)  # several tasks
    convert(str(tmp_path / "wrong"), str(tmp_path / "b"), config, workers=1)
    monkeypatch.setattr("lensprep.convert.runs.find_doubt", lambda *_: None)
    convert(str(tmp_path / "wrong"), str(tmp_path / "c"), config, workers=1)
    assert digests(tmp_path / "b") == digests(tmp_path / "c")
    if mode == "mad_stamp":
        assert caplog.messages == []
        return
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'wrong'}: Is this another unit or depth than that of")
    assert "its softening 0.05; the noise of r is " in message
    assert "\n" not in message
