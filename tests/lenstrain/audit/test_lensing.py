"""What counterfactuals say of a finder, and that no other item counts them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset.strictjson import plain
from lenstrain.audit import copies, data, leaks, lensing, loader, rescore, science, scores, sky
from lenstrain.audit.checklist import CHECKLIST, run_item
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.audit.finding import NotRunError
from lenstrain.audit.report import page
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from tests.families import BY_FLUX, BY_SHAPE, RESOLVED, add_families
from tests.lenstrain.audit.conftest import SPLITS, make_dataset, make_pixels, make_table
from tests.scoretables import make_table as make_scores

QUICK = EvaluationOptions(resamples=60, completeness_axes=(("theta_e_arcsec",),))
FAMILIES = 20
KINDS = ("unlensed", "lensed")

ITEMS = [item for item in CHECKLIST if item.name in ("counterfactuals", "pairs")]


@pytest.fixture
def judged(tmp_path, evidence_of):
    """Evidence with scores of families by a finder, and their evaluation."""

    def make(finder, name="scores", families=600, **options):
        table = make_scores(rows=6000)
        if finder is not None:
            table = add_families(table, finder, families=families, **options)
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        entries = measure(read_scores(path), None, QUICK, lambda stage, done: None).entries
        entries["provenance"] = {"scores_metadata": {}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(plain(entries)))
        evidence = evidence_of(rows=24)
        evidence.supplied = Supplied(scores=path, evaluation=tmp_path / name)
        return evidence

    return make


def found(name, evidence, config):
    """The finding of one item of the checklist."""
    (item,) = (item for item in CHECKLIST if item.name == name)
    return run_item(item, evidence, config)


def test_who_sees_flux_fails_and_who_sees_lensing_passes(judged, config):
    flux, shape = judged(BY_FLUX, "flux"), judged(BY_SHAPE, "shape")
    for item in ITEMS:
        good, bad = (run_item(item, evidence, config) for evidence in (shape, flux))
        assert (good.passed, bad.passed) == (True, False)
        assert "lensprep counterfactual" in bad.remedy
        assert "data.counterfactual_share" in bad.remedy
        assert 'data.where="label == 0 or theta_e_arcsec >= 0.5 * psfsize_r"' in bad.remedy
        assert good.remedy == ""
    rates = lensing.check_counterfactuals(flux, config)
    upper = rates.measured["fpr_upper"]
    assert rates.threshold == 2 * upper
    for kind in ("unlensed", "magnified", "extended", "companion"):
        cell = rates.measured["kinds"][kind]
        assert cell["value"] == cell["flagged"] / 600
        assert cell["factor"] == pytest.approx(cell["value"] / upper)
    assert "lensed" not in rates.measured["kinds"]


def test_extra_light_that_passes_blocks_a_publication_alone(judged, config):
    flux = judged(BY_FLUX, "flux")
    internal = AuditConfig(purpose="internal")
    assert lensing.check_counterfactuals(flux, config).severity == "blocker"
    assert lensing.check_counterfactuals(flux, internal).severity == "warn"
    other = judged(BY_FLUX, "other", kinds=("companion", "lensed"))
    found = lensing.check_counterfactuals(other, config)
    assert (found.passed, found.severity) == (False, "warn")
    good = lensing.check_counterfactuals(judged(BY_SHAPE, "shape"), config)
    assert good.severity == "warn"


def test_unresolved_lenses_need_not_be_told_from_light(judged, config):
    found = lensing.check_pairs(judged(RESOLVED), config)
    assert found.passed
    assert found.measured["resolved"]["all"]["value"] > 0.9
    assert found.measured["unresolved"]["all"]["value"] < 0.9
    across = found.measured["unresolved_across"]
    assert 0.45 < across["low"] < across["value"] < across["high"] < 0.9
    told = "The others against unlensed, magnified and extended light of all families: AUROC"
    assert f"{told} {across['value']:.3f} [{across['low']:.3f}, " in found.detail
    every = AuditConfig()
    object.__setattr__(every.science, "resolved_ratio", 0.3)
    assert lensing.check_pairs(judged(RESOLVED, "again"), every).passed is False


def test_pieces_alone_call_for_no_more_counterfactuals(judged, config):
    pieces = judged(BY_FLUX, "pieces", kinds=("scattered", "lensed"))
    for item in ITEMS:
        found = run_item(item, pieces, config)
        assert not found.passed
        assert "Pieces at the radius of an arc pass for one" in found.detail
        assert "data.counterfactual_share" not in found.detail + found.remedy
    both = judged(BY_FLUX, "both", kinds=("scattered", "unlensed", "lensed"))
    assert "data.counterfactual_share" in run_item(ITEMS[1], both, config).remedy


def test_without_counterfactuals_nothing_is_judged(judged, config):
    evidence = judged(None)
    for item in ITEMS:
        found = run_item(item, evidence, config)
        assert (found.passed, found.severity) == (None, "warn")
        assert "The scores hold no counterfactuals" in found.detail


def test_too_few_resolved_lenses_say_nothing(judged, config):
    with pytest.raises(NotRunError, match="resolved lenses with a counterfactual"):
        lensing.check_pairs(judged(BY_SHAPE, families=20), config)
    with pytest.raises(NotRunError, match="no counterfactual that is no lens"):
        lensing.check_counterfactuals(judged(BY_SHAPE, "x", kinds=("lensed",)), config)


def test_an_evaluation_that_leaves_them_out_is_not_trusted(judged, config):
    evidence = judged(BY_FLUX)
    path = evidence.supplied.evaluation / "metrics.json"
    content = json.loads(path.read_text())
    del content["counterfactuals"]
    path.write_text(json.dumps(content))
    with pytest.raises(NotRunError, match="Evaluate again"):
        lensing.check_counterfactuals(evidence, config)


def test_the_page_has_a_table_of_the_kinds(judged, config):
    evidence = judged(BY_FLUX)
    findings = [run_item(item, evidence, config) for item in ITEMS]
    names = ("run", "dataset", "dataset_id", "checkpoint", "created", "version", "purpose")
    content = dict.fromkeys(names, "x") | {
        "verdict": "NO-GO",
        "digests": {},
        "config": {},
        "pages": {},
    }
    text = page(content, findings)
    assert ">Counterfactuals</h2>" in text
    cell = findings[0].measured["kinds"]["magnified"]
    row = text[text.index("magnified</th>") :].split("</tr>")[0]
    assert f"<td>{cell['flagged']} of 600</td>" in row
    assert f"{100 * findings[1].measured['resolved']['magnified']['value']:.1f}%" in row
    assert ">Counterfactuals</h2>" not in page(content, findings[:0])


def grown(table, split, seed=0):
    """Rows of a split and, mixed among them, families that would spoil every check."""
    number, label = SPLITS.index(split), table["label"].to_numpy()
    rng = np.random.default_rng([seed, number])
    host = rng.choice(np.flatnonzero(label == 0), FAMILIES)
    parts = [table.append_column("counterfactual", pa.nulls(len(label), pa.string()))]
    for kind in KINDS:
        lens = kind == "lensed"
        part = table.take(pa.array(host)).append_column("counterfactual", [[kind] * FAMILIES])
        row = range(FAMILIES)
        changed = {
            "key": [f"f{lens:x}{number}{i:029x}" for i in row],
            "pixel_hash": [
                f"{2**60 + lens * 10**6 + number * 10**5 + i:016x}{0:016x}" for i in row
            ],
            "label": [int(lens)] * FAMILIES,
            "is_control": [1 - lens] * FAMILIES,
            "lens_model": ["SIE" if lens else "CONTROL"] * FAMILIES,
            "theta_e_arcsec": [0.1 * lens] * FAMILIES,
            "psfsize_r": [3.0 - lens] * FAMILIES,
            "psfdepth_r": [30.0 - 9 * lens] * FAMILIES,
        }
        for name, column in changed.items():
            place = part.column_names.index(name)
            part = part.set_column(place, name, pa.array(column, part[name].type))
        parts.append(part)
    everything = pa.concat_tables(parts)
    for name in ("host_task_id", "donor_task_id"):
        made = [None if kind is None else f"{name}-{i}"
                for i, kind in enumerate(everything["counterfactual"].to_pylist())]  # fmt: skip
        everything = everything.append_column(name, pa.array(made, pa.string()))
    place = np.concatenate([np.arange(len(label)), rng.uniform(0, len(label), 2 * FAMILIES)])
    order = np.argsort(place, kind="stable")
    source = np.concatenate([np.arange(len(label)), host, host])[order]
    return everything.take(pa.array(order)), source


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One dataset without counterfactuals and one with them, of the same other rows."""
    folder = tmp_path_factory.mktemp("grown")
    tables = {split: make_table(split) for split in SPLITS}
    pixels = {s: make_pixels(t["label"].to_numpy(), i) for i, (s, t) in enumerate(tables.items())}
    more = {split: grown(table, split) for split, table in tables.items()}
    spoilt = {}
    for split, (table, source) in more.items():
        made = np.array(table["counterfactual"].is_valid())
        spoilt[split] = pixels[split][source] + np.float16(5) * made[:, None, None, None]
    without = make_dataset(folder / "without", tables, pixels=pixels)
    having = make_dataset(folder / "having", {s: t for s, (t, _) in more.items()}, pixels=spoilt)
    return folder, without, having


@pytest.mark.parametrize(
    "check",
    [
        data.check_both_classes, data.check_split_disjoint, data.check_duplicates,
        data.check_label_consistency, data.check_split_fractions, data.check_pairing,
        copies.check_near_duplicates, leaks.check_metadata_probe, leaks.check_psf_depth,
        sky.check_sky_probe, science.check_unresolved_share,
    ],
)  # fmt: skip
def test_no_item_about_the_data_counts_them(both, check):
    folder, *datasets = both
    config = AuditConfig(resamples=60)
    for name, value in (("train_fraction", 1 / 3), ("pairing", "unpaired")):
        object.__setattr__(config.data, name, value)
    one, other = (check(Evidence(folder / "run", each), config) for each in datasets)
    assert one.passed is True
    assert (other.passed, other.measured) == (one.passed, one.measured)


def test_rows_that_a_finder_reads_are_all_counted(both, config):
    folder, without, having = both
    assert loader.check_loader_coverage(Evidence(folder, having), config).measured["rows"] == 160
    assert Evidence(folder, having).rows == Evidence(folder, without).rows == 360
    table, pixels = Evidence(folder, having).sampled_pixels(["key"], 10_000)
    assert (table.num_rows, len(pixels)) == (480, 480)


def test_a_counterfactual_in_another_split_is_found(both, tmp_path, config):
    """One that has the image of a test stamp, or lies in a region of the test split."""
    train, test = (grown(make_table(split), split)[0] for split in ("train", "test"))
    row = int(np.flatnonzero(train["counterfactual"].is_valid())[0])
    spoilt = train
    for name in ("pixel_hash", "region_id"):
        values = train[name].to_pylist()
        values[row] = test[name][0].as_py()
        column = pa.array(values, train[name].type)
        spoilt = spoilt.set_column(train.column_names.index(name), name, column)
    tables = {"train": spoilt, "val": grown(make_table("val"), "val")[0], "test": test}
    pixels = {split: np.zeros((160, 3, 64, 64), np.float16) for split in SPLITS}
    evidence = Evidence(tmp_path, make_dataset(tmp_path / "ds", tables, pixels=pixels))
    assert data.check_duplicates(evidence, config).measured["across_splits"] == 1
    assert data.check_split_disjoint(evidence, config).measured["shared"]["region_id"] == 1


def test_scores_must_hold_every_counterfactual_as_it_is(both, tmp_path, config):
    folder, _, having = both
    table = having.read_sidecar("test")
    table = table.append_column("logit", pa.array(np.arange(160.0), pa.float32()))
    table = table.append_column("split", pa.array(["test"] * 160))

    def found(scored):
        path = tmp_path / "scores.parquet"
        pq.write_table(scored.replace_schema_metadata({"lenstrain": '{"split": "test"}'}), path)
        return scores.check_full_eval(Evidence(folder, having, Supplied(scores=path)), config)

    whole = found(table)
    assert whole.passed
    assert whole.measured["scored"] == 160
    assert "counterfactual" in whole.measured["compared"]
    made = np.flatnonzero(table["counterfactual"].is_valid())
    fewer = found(table.take(pa.array(np.delete(np.arange(160), made[0]))))
    assert (fewer.passed, fewer.measured["scored"]) == (False, 159)
    # One that is passed off as an ordinary row.
    kinds = table["counterfactual"].to_pylist()
    kinds[made[0]] = None
    place = table.column_names.index("counterfactual")
    altered = found(table.set_column(place, "counterfactual", pa.array(kinds, pa.string())))
    assert altered.passed is False
    assert altered.measured["altered"] == {"counterfactual": 1}


def test_logits_of_counterfactuals_are_scored_again_too(both, tmp_path):
    folder, _, having = both
    table = having.read_sidecar("test")
    table = table.append_column("logit", pa.array(np.zeros(160), pa.float32()))
    pq.write_table(table, tmp_path / "scores.parquet")
    evidence = Evidence(folder, having, Supplied(scores=tmp_path / "scores.parquet"))
    keys = evidence.sidecar("test", ["key"], everything=True)["key"]
    rows, position = rescore.sample_rows(evidence.scores, keys, 1000, 0)
    assert np.array_equal(rows, np.arange(160))
    everything = evidence.scores.everything.table["key"].to_pylist()
    assert [keys[int(i)].as_py() for i in position] == everything


def test_pixels_belong_to_their_rows(both):
    """Rows are chosen among the ordinary ones; their pixels are found by the place in the shard."""
    folder, without, having = both
    for split in SPLITS:
        rows = Evidence(folder, having).rows_of(split)
        ours, theirs = having.read_pixels(split, rows), without.read_pixels(split, np.arange(120))
        assert np.array_equal(ours, theirs)
    one, other = (
        Evidence(folder, each).grouped_pixels("region_id", ["region_id", "key"], 90, 0)
        for each in (without, having)
    )
    order = [np.argsort(table["key"].to_pylist()) for table, _ in (one, other)]
    assert one[0].num_rows == other[0].num_rows < 360
    assert np.array_equal(one[1][order[0]], other[1][order[1]])
