"""A tree of counterfactuals beside a synthetic Phase 4c tree: rows, account, bytes, resumption."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from lensprep.cli import main
from lensprep.convert import ConvertConfig, convert
from lensprep.counterfactual import make_counterfactuals, tree
from lensprep.counterfactual.stamp import measure_host
from lensprep.dataset import open_dataset
from lensprep.dataset.layout import BANDS, COUNTERFACTUAL, COUNTERFACTUALS, LENSED
from lensprep.decode.stampnpz import decode
from lensprep.errors import ConfigError, SchemaError, StorageError
from lensprep.source.contract import is_counterfactual, label_rows
from lensprep.source.survey import LEAKING_COLUMNS
from lensprep.source.tree import Source
from lensprep.synth import synthesize

ROWS, SEED, SHARE = 240, 3, 0.4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("source") / "phase4c"
    defects = {"duplicate_pixels": 0.004, "failed_cutout": 0.01, "nan_pixels": 0.04}
    synthesize(out, rows=ROWS, seed=SEED, regions=12, workers=1, defects=defects)
    return out


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "counterfactuals"
    return out, make_counterfactuals(source, out, share=SHARE, seed=1, workers=1)


def rows_of(folder, options=None):
    source = Source.open(folder, options=options)
    tables = [table for file in source.files for table in source.iter_file(file)]
    return pa.concat_tables(tables).to_pylist()


def pixels_of(row):
    stamp = np.empty((3, 64, 64), np.float32)
    assert decode(row["stamp_npz"], stamp) is None
    return stamp


def families(folder):
    found = {}
    for row in rows_of(folder):
        key = row["host_task_id"], row["donor_task_id"]
        found.setdefault(key, {})[row[COUNTERFACTUAL]] = row
    return found


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_account_balances(source, made):
    out, account = made
    rows = rows_of(out)
    assert account["rows"] == len(rows) == sum(account["kinds"].values())
    skipped = sum(account["skipped"].values())
    assert account["rows"] + skipped == account["families"] * len(COUNTERFACTUALS)
    assert set(account["skipped"]) == {"scattered/unresolved", "host/nonfinite"}
    used = account["hosts"] + account["donors"] + sum(account["unusable"].values())
    assert used == Source.open(source).rows
    assert account["unusable"].keys() == {"cutout_not_ok", "repeated_galaxy"}
    by_split = [sum(kinds.values()) for kinds in account["splits"].values()]
    assert sum(by_split) == len(rows)
    # Every host is drawn with the probability that was asked for: 3 standard errors.
    spread = 3 * (account["hosts"] * SHARE * (1 - SHARE)) ** 0.5
    assert abs(account["families"] - SHARE * account["hosts"]) < spread
    assert json.loads((out / "_account.json").read_text())["rows"] == len(rows)


def test_each_row_tells_its_kind_host_and_donor(source, made):
    ordinary = {row["task_id"]: row for row in rows_of(source)}
    rows = rows_of(made[0])
    assert len({row["task_id"] for row in rows} | {*ordinary}) == len(rows) + len(ordinary)
    shared = ("region_split", "region_id", "brickname", "ra", "dec", "psfsize_r", "psfdepth_r",
              "ebv", "bad_pixel_frac", "selection_set_id")  # fmt: skip
    for row in rows:
        host, donor = ordinary[row["host_task_id"]], ordinary[row["donor_task_id"]]
        assert host["lens_model"] == "CONTROL"
        assert donor["lens_model"] == "SIE"
        assert donor["region_split"] == row["region_split"]
        assert {name: row[name] for name in shared} == {name: host[name] for name in shared}
        leaking = {name: row[name] for name in LEAKING_COLUMNS if name in host}
        if row[COUNTERFACTUAL] != LENSED:
            assert leaking == {name: host[name] for name in leaking}
            continue
        measured = {"arc_snr", *(f"psf_fwhm_used_{band}" for band in BANDS)}
        for name in leaking.keys() - measured:
            assert row[name] == donor[name]
        assert row["psf_fwhm_used_r"] == row["psfsize_r"]
        assert row["arc_snr"] > 0


def test_labels_are_those_of_the_kinds(made):
    source = Source.open(made[0])
    for file in source.files:
        for table in source.iter_file(file):
            labels = label_rows(table)
            assert (labels.reason == "").all()
            assert is_counterfactual(table).all()
            kinds = np.array(table[COUNTERFACTUAL].to_pylist())
            assert (labels.label == (kinds == LENSED)).all()


def test_a_family_is_one_host_with_one_flux(source, made):
    """Each kind adds the donor's flux and colours: the noise and what leaves the stamp apart."""
    ordinary = {row["task_id"]: row for row in rows_of(source)}
    ratios = []
    for (host, donor), kinds in families(made[0]).items():
        before = pixels_of(ordinary[host]).astype(np.float64)
        light = ordinary[donor]
        r = light["total_injected_flux_r"]
        flux = np.array([r * 10 ** (-0.4 * light["src_gr"]), r, r * 10 ** (0.4 * light["src_rz"])])
        for kind, row in kinds.items():
            added = pixels_of(row) - before
            if kind != "companion":
                ratios.append(added.sum((1, 2)) / flux)
    ratios = np.array(ratios)
    assert np.median(ratios, axis=0) == pytest.approx([1, 1, 1], abs=0.01)
    assert np.abs(np.percentile(ratios, (5, 95), axis=0) - 1).max() < 0.15


def test_without_noise_fluxes_are_exact_to_half_a_per_cent(source, tmp_path):
    make_counterfactuals(
        source, tmp_path / "out", kinds=["unlensed", "magnified", LENSED], share=SHARE, seed=1,
        photon_noise=False, workers=1,
    )  # fmt: skip
    ordinary = {row["task_id"]: row for row in rows_of(source)}
    for (host, donor), kinds in families(tmp_path / "out").items():
        before = pixels_of(ordinary[host]).astype(np.float64)
        for row in kinds.values():
            added = (pixels_of(row) - before)[1].sum()
            assert added == pytest.approx(ordinary[donor]["total_injected_flux_r"], rel=0.005)


def test_the_brighter_host_gets_the_donor_with_the_brighter_galaxy(source, made):
    ordinary = {row["task_id"]: row for row in rows_of(source)}
    pairs = []
    for host, donor in families(made[0]):
        light = ordinary[donor]
        galaxy = (light["total_injected_flux_r"] / light["magnification"]
                  * 10 ** (0.4 * light["src_dmag"]))  # fmt: skip
        pairs.append((measure_host(pixels_of(ordinary[host])).flux[1], galaxy))
    # Rows of one file are matched with each other, in files of a dozen hosts.
    found = spearmanr(*np.array(pairs).T)
    assert found.statistic > 0.4
    assert found.pvalue < 0.01


def test_two_processes_write_the_same_bytes(source, made, tmp_path):
    again = make_counterfactuals(source, tmp_path / "out", share=SHARE, seed=1, workers=2)
    ours, first = contents(tmp_path / "out"), contents(made[0])
    accounts = [json.loads(files.pop("_account.json")) for files in (ours, first)]
    assert ours == first
    for account in accounts:
        del account["out"]
    assert accounts[0] == accounts[1]
    assert again["balance"] == made[1]["balance"]


def test_another_seed_makes_other_families(source, made, tmp_path):
    make_counterfactuals(source, tmp_path / "out", share=SHARE, seed=2, workers=1)
    assert families(tmp_path / "out").keys().isdisjoint(families(made[0]).keys())


def test_an_interrupted_run_is_resumed_and_refuses_other_settings(
    source, made, tmp_path, monkeypatch
):
    out, made_before, done = tmp_path / "out", tree.make_families, []

    def stop_after_two(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return made_before(task)

    monkeypatch.setattr(tree, "make_families", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        make_counterfactuals(source, out, share=SHARE, seed=1, workers=1)
    monkeypatch.setattr(tree, "make_families", made_before)
    with pytest.raises(StorageError, match="--resume"):
        make_counterfactuals(source, out, share=SHARE, seed=1, workers=1)
    with pytest.raises(StorageError, match=r"share 0\.4, not 0\.3"):
        make_counterfactuals(source, out, share=0.3, seed=1, workers=1, resume=True)
    with pytest.raises(Exception, match="_temporary"):  # no reader takes it for a whole tree
        Source.open(out)
    finished = {path.name: path.stat().st_mtime_ns for path in out.rglob("counterfactual-*")}
    assert len(finished) == 2
    make_counterfactuals(source, out, share=SHARE, seed=1, workers=1, resume=True)
    now = {path.name: path.stat().st_mtime_ns for path in out.rglob("counterfactual-*")}
    assert now | finished == now
    ours, first = contents(out), contents(made[0])
    ours.pop("_account.json"), first.pop("_account.json")
    assert ours == first
    # What is finished is left alone, and says so again, even if it was killed before it was tidy.
    before = contents(out)
    (out / "_temporary").mkdir()
    (out / "_temporary/settings.json").write_text("{}")
    account = make_counterfactuals(source, out, share=SHARE, seed=1, workers=1, resume=True)
    assert account["rows"] == made[1]["rows"]
    assert contents(out) == before
    assert not (out / "_temporary").exists()


def test_an_object_store_holds_the_same(source, made, s3):
    uri = f"{s3.uri}/counterfactuals"
    make_counterfactuals(source, uri, share=SHARE, seed=1, workers=1, options=s3.options())
    assert [row["task_id"] for row in rows_of(uri, s3.options())] == [
        row["task_id"] for row in rows_of(made[0])
    ]


def test_both_trees_make_one_dataset(source, made, tmp_path):
    config = ConvertConfig(max_reject_rate=0.1)
    result = convert([source, made[0]], tmp_path / "dataset", config, workers=1)
    assert (
        result["accepted"] + sum(result["rejected"].values()) + sum(result["filtered"].values())
        == Source.open(source).rows + made[1]["rows"]
    )
    dataset = open_dataset(tmp_path / "dataset")
    for split, kinds in made[1]["splits"].items():
        assert dataset.split(split).counterfactuals == kinds
    # Counterfactuals of what already holds some are made of the ordinary rows alone.
    shutil.copytree(source, tmp_path / "both/phase4c")
    shutil.copytree(made[0], tmp_path / "both/counterfactuals")
    again = make_counterfactuals(
        tmp_path / "both", tmp_path / "out", share=SHARE, seed=1, workers=1
    )
    assert again["unusable"]["counterfactual"] == made[1]["rows"]
    assert again["hosts"] == made[1]["hosts"]


def test_wishes_that_cannot_be_met_are_one_line(source, tmp_path):
    with pytest.raises(ConfigError, match=r"'rings'.*unlensed, magnified"):
        make_counterfactuals(source, tmp_path / "out", kinds=["rings"])
    with pytest.raises(ConfigError, match="share"):
        make_counterfactuals(source, tmp_path / "out", share=0)
    with pytest.raises(StorageError, match="beside it"):
        make_counterfactuals(source, source / "more")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(StorageError, match="not empty"):
        make_counterfactuals(source, tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_a_source_without_the_columns_of_arcs_names_them(source, tmp_path):
    shutil.copytree(source, tmp_path / "bare")
    for path in (tmp_path / "bare").rglob("part-*.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.drop_columns(["src_e", "lens_e"]), path)
    with pytest.raises(SchemaError, match="src_e"):
        make_counterfactuals(tmp_path / "bare", tmp_path / "out", workers=1)


def test_the_command_states_counts_and_balance(source, tmp_path):
    arguments = ["counterfactual", str(source), str(tmp_path / "out"), "--share", "0.1",
                 "--kinds", "unlensed,lensed", "--workers", "1"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "families" in result.stdout
    assert "by fluxes" in result.stdout
    account = CliRunner().invoke(main, [*arguments, "--resume", "--json"])
    assert account.exit_code == 0, account.output
    assert json.loads(account.stdout)["kinds"].keys() == {"unlensed", LENSED}
    assert Path(tmp_path / "out/_SUCCESS").exists()
