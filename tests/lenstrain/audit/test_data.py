"""Checks of the dataset: each on data that must pass it and data that must fail it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lensprep.errors import ScoresError
from lenstrain.audit import data
from lenstrain.audit.config import AuditConfig, DataThresholds
from lenstrain.audit.finding import NotRunError
from lenstrain.config import Config, DataConfig
from tests.lenstrain.audit.conftest import set_account


def account(rejected, rows=100_000, by_class=None):
    by_class = by_class or {"0": rejected // 2, "1": rejected - rejected // 2}
    reasons = {"nonfinite": rejected} if rejected else {}
    train = {
        label: {"input_rows": rows // 2, "accepted": rows // 2 - n, "filtered": {},
                "rejected": {"nonfinite": n} if n else {}}
        for label, n in by_class.items()
    }  # fmt: skip
    return {"input_rows": rows, "accepted": rows - rejected, "filtered": {}, "rejected": reasons,
            "splits": {"train": train}}  # fmt: skip


def test_schema_passes(evidence_of, config):
    found = data.check_schema(evidence_of(), config)
    assert found.passed
    assert found.measured["sidecars"] == 9


def test_schema_misses_a_column(evidence_of, config):
    found = data.check_schema(evidence_of(val={"median_g": None}), config)
    assert not found.passed
    assert "val/val-000000.parquet lacks median_g" in found.detail


def test_schema_finds_another_type(evidence_of, config):
    found = data.check_schema(evidence_of(test={"ebv": lambda row: row}), config)
    assert not found.passed
    assert "ebv is double and int64" in found.detail


@pytest.mark.parametrize(
    ("rejected", "by_class", "passed", "severity"),
    [
        (80, None, True, "warn"),
        (200, None, False, "warn"),
        (1500, None, False, "blocker"),
        (90, {"0": 5, "1": 85}, False, "warn"),
    ],
)
def test_reject_rate(evidence_of, config, rejected, by_class, passed, severity):
    evidence = evidence_of()
    evidence.dataset = set_account(evidence.dataset, **account(rejected, by_class=by_class))
    found = data.check_reject_rate(evidence, config)
    assert (found.passed, found.severity) == (passed, severity)
    assert found.measured["rate"] == rejected / 100_000


def test_counterfactuals_hide_no_rejects(evidence_of, config):
    stated = account(200)
    stated["splits"]["test"] = {
        "counterfactual": {"input_rows": 100_000, "accepted": 99_995, "filtered": {"tract": 1},
                           "rejected": {"nonfinite": 3, "truncated": 1}},
    }  # fmt: skip
    both = {"input_rows": 200_000, "accepted": 199_795, "filtered": {"tract": 1},
            "rejected": {"nonfinite": 203, "truncated": 1}}  # fmt: skip
    evidence = evidence_of()
    evidence.dataset = set_account(evidence.dataset, **stated | both)
    found = data.check_reject_rate(evidence, config)
    assert not found.passed
    assert found.measured["rate"] == 200 / 100_000
    assert (found.measured["reasons"], found.measured["filtered"]) == ({"nonfinite": 200}, {})
    assert found.detail.startswith("0.200% of 100,000 rows were rejected (nonfinite 200);")


def test_reject_rate_needs_an_account(evidence_of, config):
    with pytest.raises(NotRunError, match="no account"):
        data.check_reject_rate(evidence_of(), config)


def test_labels_agree_or_are_counted(evidence_of, config):
    assert data.check_label_consistency(evidence_of(), config).passed
    wrong = evidence_of(
        train={"lens_model": lambda row: ["UNK"] * 3 + ["SIE", "CONTROL"] * 58 + ["SIE"]},
        val={"theta_e_arcsec": lambda row: np.where(row == 0, 0.6, np.where(row % 2, 1.0, 0))},
        test={"is_control": lambda row: pa.array(row % 2, pa.int32())},
    )  # fmt: skip
    found = data.check_label_consistency(wrong, config)
    assert not found.passed
    assert found.measured == {"lens_model": 3, "theta_e_arcsec": 1, "is_control": 120}


def test_labels_of_cutouts_need_no_radius_and_no_flag(evidence_of, config):
    def real(row, missing, known):
        return [missing if i < 20 else value for i, value in enumerate(known)]

    model = {1: "LENS", 0: "NONLENS"}
    columns = {
        "lens_model": lambda row: [model[i % 2] if i < 20 else ("CONTROL", "SIE")[i % 2]
                                   for i in row],
        "theta_e_arcsec": lambda row: pa.array(real(row, None, (row % 2) * 1.0), pa.float64()),
        "is_control": lambda row: pa.array(real(row, None, 1 - row % 2), pa.int32()),
    }  # fmt: skip
    evidence = evidence_of(train=columns)
    evidence.dataset.manifest.label_map.update(LENS=1, NONLENS=0)
    assert data.check_label_consistency(evidence, config).passed
    columns["lens_model"] = lambda row: np.where(row % 2, "SIE", "CONTROL").tolist()
    found = data.check_label_consistency(evidence_of(train=columns), config)
    assert found.measured == {"lens_model": 0, "theta_e_arcsec": 10, "is_control": 10}
    columns["lens_model"] = lambda row: np.where(row % 2, "NONLENS", "CONTROL").tolist()
    wrong = evidence_of(train=columns)
    wrong.dataset.manifest.label_map.update(LENS=1, NONLENS=0)
    assert data.check_label_consistency(wrong, config).measured["lens_model"] == 60


def test_both_classes(evidence_of, config):
    assert data.check_both_classes(evidence_of(), config).passed
    lenses = {"label": lambda row: pa.array(np.ones(len(row)), pa.int8())}
    found = data.check_both_classes(evidence_of(val=lenses), config)
    assert not found.passed
    assert "val has no rows of class 0" in found.detail
    assert "no test" in data.check_both_classes(evidence_of(only=("train", "val")), config).detail


def test_splits_share_nothing(evidence_of, config):
    found = data.check_split_disjoint(evidence_of(), config)
    assert found.passed
    assert found.measured["nearest_arcsec"]["train-val"] > 10_000


def test_a_region_in_two_splits_is_found(evidence_of, config):
    moved = {"region_id": lambda row: pa.array(1000 + row // 6, pa.int32())}
    found = data.check_split_disjoint(evidence_of(train=moved), config)
    assert not found.passed
    assert found.measured["shared"]["region_id"] == 20


def test_no_brick_is_not_one_that_splits_share(evidence_of, config):
    bricks = {"brickname": lambda row: [None if i % 5 == 0 else f"b{i}" for i in row]}
    found = data.check_split_disjoint(evidence_of(every=bricks), config)
    assert found.measured["shared"]["brickname"] == 120 - 120 // 5


def test_stamps_that_share_sky_are_found(evidence_of, config):
    """One stamp of test 20 arcsec from one of train: nearer than a diagonal."""
    near = {
        "ra": lambda row: np.where(row == 5, 0.0, 100.0 + row),
        "dec": lambda row: np.where(row == 5, 20 / 3600, 20.0),
    }
    found = data.check_split_disjoint(evidence_of(test=near), config)
    assert not found.passed
    assert found.measured["nearest_arcsec"]["train-test"] == pytest.approx(20, abs=0.01)
    assert found.measured["close_positions"] == 1
    far = replace(config, data=DataThresholds(min_separation_arcsec=19))
    assert data.check_split_disjoint(evidence_of(test=near), far).passed


def test_without_positions_shared_sky_is_not_known(evidence_of, config):
    with pytest.raises(NotRunError, match="no ra and dec"):
        data.check_split_disjoint(evidence_of(every={"ra": None}), config)


def test_images_are_unique(evidence_of, config):
    found = data.check_duplicates(evidence_of(), config)
    assert found.passed
    assert found.measured["unique"] == {"0": 180, "1": 180}


def test_repeated_images_within_a_class_are_counted_not_blamed(evidence_of, config):
    """A control in twelve selection sets: no fault, but fewer independent non-lenses."""
    repeated = {"pixel_hash": lambda row: [f"{i // 24 * 2 + i % 2:016x}{0:016x}" for i in row]}
    found = data.check_duplicates(evidence_of(train=repeated), config)
    assert found.passed
    assert found.measured["unique"] == {"0": 5 + 120, "1": 5 + 120}


def test_an_image_in_two_splits_or_with_two_labels_is_found(evidence_of, config):
    val = {"pixel_hash": lambda row: [f"{i:016x}{0:016x}" for i in row]}
    found = data.check_duplicates(evidence_of(val=val), config)
    assert not found.passed
    assert found.measured["across_splits"] == 120
    one = {"pixel_hash": lambda row: [f"{10**9 + i // 2:016x}{0:016x}" for i in row]}
    found = data.check_duplicates(evidence_of(train=one), config)
    assert not found.passed
    assert found.measured["across_labels"] == 60


def test_split_fractions_are_compared_with_what_is_declared(evidence_of):
    declared = DataThresholds(train_fraction=1 / 3, val_fraction=1 / 3)
    assert data.check_split_fractions(evidence_of(), AuditConfig(data=declared)).passed
    believed = DataThresholds(train_fraction=0.8)
    found = data.check_split_fractions(evidence_of(), AuditConfig(data=believed))
    assert not found.passed
    found = data.check_split_fractions(evidence_of(), AuditConfig())
    assert found.passed is None
    assert "train 33.3%" in found.detail


def test_pairing_is_compared_with_what_is_declared(evidence_of):
    paired = {"ra": lambda row: row // 2 * 0.1}
    modes = {
        mode: AuditConfig(data=DataThresholds(pairing=mode)) for mode in ("paired", "unpaired")
    }
    assert data.check_pairing(evidence_of(every=paired), modes["paired"]).passed
    assert not data.check_pairing(evidence_of(every=paired), modes["unpaired"]).passed
    assert data.check_pairing(evidence_of(), modes["unpaired"]).passed
    assert not data.check_pairing(evidence_of(), modes["paired"]).passed
    found = data.check_pairing(evidence_of(), AuditConfig())
    assert (found.passed, found.measured["share"]) == (None, 0.0)
    assert "no mode is declared" in found.detail


def test_the_network_of_a_run_sees_pixels_alone(run_evidence, config):
    found = data.check_forbidden_inputs(run_evidence, config)
    assert found.passed
    assert found.measured["inputs"] == ["pixels_g", "pixels_r", "pixels_z"]


def test_another_channel_or_a_forbidden_input_is_found(run_evidence, config):
    run_evidence.checkpoint = {"model": {"conv.weight": torch.zeros(8, 4, 3, 3)}}
    assert not data.check_forbidden_inputs(run_evidence, config).passed
    run_evidence.checkpoint = {
        "model": {"conv.weight": torch.zeros(8, 3, 3, 3)}, "inputs": ["psfsize_r", "arc_snr"],
    }  # fmt: skip
    found = data.check_forbidden_inputs(run_evidence, config)
    assert not found.passed
    assert "arc_snr, which reveal the label" in found.detail


def test_selecting_by_a_forbidden_column_is_told(run_evidence, config):
    run_evidence.config = Config(data=DataConfig(where="theta_e_arcsec != 0.6"))
    found = data.check_forbidden_inputs(run_evidence, config)
    assert found.passed
    assert "selected by theta_e_arcsec" in found.detail


def test_a_missing_column_is_a_reason_not_to_run(evidence_of, config):
    evidence = evidence_of(every={"pixel_hash": None})
    assert (
        "pixel_hash" not in pq.read_schema(evidence.dataset.root / "val/val-000000.parquet").names
    )
    with pytest.raises(NotRunError, match="no column 'pixel_hash'"):
        data.check_duplicates(evidence, config)


def test_a_position_off_the_sky_is_a_reason_with_its_row(evidence_of, config):
    off = {"dec": lambda row: np.where(row == 2, 95.0, 0.0)}
    for check in (data.check_split_disjoint, data.check_pairing):
        with pytest.raises(ScoresError, match=r"sidecars of val: 1 rows .* row 3, key .* dec 95"):
            check(evidence_of(val=off), config)


def test_galaxies_of_unknown_position_are_no_pairs_and_do_not_count(evidence_of):
    paired = DataThresholds(pairing="unpaired")
    gone = {"ra": lambda row: np.where(row % 4 < 2, np.nan, row * 0.01)}
    found = data.check_pairing(evidence_of(every=gone), AuditConfig(data=paired))
    assert found.measured == {"share": 0.0, "galaxies": 90}
