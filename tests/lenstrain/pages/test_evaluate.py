"""From a table of scores to the folder: figures that agree with each other, whole or not at all."""

import ast
import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lensprep.dataset import DECALS, Dataset, NormalizationSpec
from lensprep.dataset.writer import write_dataset
from lensprep.errors import DatasetError, OutOfMemoryError, ScoresError, StorageError
from lenstrain.evaluation.notes import comparison_notes
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from lenstrain.pages import examples
from lenstrain.pages.evaluate import evaluate
from tests.datasets import PAIR, SPEC, tiny_pixels
from tests.families import BY_FLUX, add_families
from tests.scoretables import BARE, make_mixed, make_table

# Few draws, axes and figures: these tests are about agreement, not precision.
QUICK = EvaluationOptions(
    resamples=60,
    examples=3,
    prevalence=(),
    completeness_axes=(("theta_e_arcsec",), ("theta_e_arcsec", "psfsize_r")),
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """One full evaluation with calibration, shared by the tests that only read it."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name, seed in (("test", 1), ("val", 2)):
        pq.write_table(make_table(rows=3000, seed=seed), folder / f"{name}.parquet")
    real = {"key": ["a", "b"], "logit": [9.0, -9.0], "ra": [1.0, 2.0], "dec": [0.0, 0.0]}
    pq.write_table(pa.table(real), folder / "real.parquet")
    (folder / "known.csv").write_text("name,RA,DEC,grading\nA,1,0,confident\nB,2,0,probable\n")
    stages = []
    result = evaluate(
        folder / "test.parquet",
        folder / "out",
        calibrate_on=folder / "val.parquet",
        compare_with=folder / "test.parquet",
        catalog=folder / "known.csv",
        catalog_scores=folder / "real.parquet",
        options=EvaluationOptions(resamples=200),
        progress=lambda stage, done: stages.append((stage, done)),
    )
    return folder, result, stages


def test_the_figures_are_those_of_the_table(evaluated):
    folder, metrics, _ = evaluated
    table = pq.read_table(folder / "test.parquet")
    labels, logits = table["label"].to_numpy(), table["logit"].to_numpy()
    assert metrics["auroc"]["value"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert metrics["average_precision"]["value"] == pytest.approx(
        average_precision_score(labels, logits), abs=1e-12
    )
    assert metrics["partial_auroc"]["value"] == pytest.approx(
        roc_auc_score(labels, logits, max_fpr=0.01), abs=1e-9
    )
    assert (metrics["n"], metrics["n_positive"]) == (3000, int(labels.sum()))
    assert (metrics["n_negative"], metrics["n_regions"]) == (int((labels == 0).sum()), 40)
    theta = table["theta_e_arcsec"].to_numpy()
    for name, entry in metrics["auroc_by_theta_e"].items():
        kept = (labels == 0) | (theta == float(name))
        assert entry["value"] == pytest.approx(roc_auc_score(labels[kept], logits[kept]), abs=1e-12)
        assert entry["n"] == int((theta == float(name)).sum())
    assert list(metrics["auroc_by_theta_e"]) == ["0.3", "0.6", "1.0"]


def test_the_page_says_which_scores_it_is_of_and_what_the_figures_say(evaluated):
    page = (evaluated[0] / "out" / "report.html").read_text()
    assert "<title>“test”: lens finder evaluation, AUROC 0." in page
    assert "<h1>How good is the lens finder “test”?</h1>" in page
    says = "Completeness rises with the Einstein radius: from "
    assert f'<li class="says">{says}' in page
    assert f'alt="Figure: Completeness against Einstein radius. {says}' in page
    # Seeing decides nothing in these scores.
    assert "seeing (PSF FWHM): from" not in page


def test_the_page_writes_rates_in_percent_and_says_what_a_comparison_shows(evaluated):
    folder, metrics, _ = evaluated
    page = (folder / "out" / "report.html").read_text()
    for written in ("FPR 0.01<", "FPR 1e", "1e+07", "e-05"):
        assert written not in page
    assert "1,000 false among 10,000,000" in page
    assert '<div class="name">Gain in AUROC</div>' in page  # against itself
    row = page[page.index('<th scope="row">Completeness at FPR 1%') :].split("</tr>")[0]
    share = f"{100 * metrics['tpr_at_fpr']['0.01']['value']:.1f}%"
    assert re.findall(r"<td>(.*?)</td>", row) == [
        share, share, "+0.0 [+0.0, +0.0] % points", "not shown to differ"
    ]  # fmt: skip
    (least,) = re.findall(r"1 in 10,000<.*?at least ([\d.]+)<", page) or ["n/a"]
    assert least == "n/a" or float(least) > 0


def test_thresholds_that_no_bin_of_seeing_supports_take_one_sentence(tmp_path, write_scores):
    options = replace(QUICK, resamples=20, completeness_axes=(("psfsize_r",),))
    few = evaluate(write_scores(rows=400), tmp_path / "out", options=options)
    assert all(choice["threshold"] is None for choice in few["thresholds_by_seeing"])
    page = (tmp_path / "out" / "report.html").read_text()
    said = f"is supported in none of {len(few['thresholds_by_seeing'])}: that for "
    assert said + few["thresholds_by_seeing"][0]["name"] in page
    assert "Thresholds by seeing" not in page


def test_a_selection_function_is_fitted_on_demand_alone(evaluated):
    folder, metrics, _ = evaluated
    assert metrics["selection_function"] is None
    assert not list((folder / "out").glob("selection_function*"))
    assert 'id="selection"' not in (folder / "out" / "report.html").read_text()


def test_every_interval_holds_its_value(evaluated):
    _, metrics, _ = evaluated
    found = []

    def walk(tree):
        if isinstance(tree, dict):
            if {"value", "low", "high"} <= tree.keys() and tree["value"] is not None:
                found.append(tree)
            for item in tree.values():
                walk(item)
        elif isinstance(tree, list):
            for item in tree:
                walk(item)

    walk(metrics)
    assert len(found) > 40
    for entry in found:
        if entry["low"] is None:
            assert entry["high"] is None
        elif "debiased_squared" not in entry:
            assert entry["low"] <= max(entry["value"], 0.0) <= entry["high"]


def test_rates_are_reported_in_the_agreed_form(evaluated):
    _, metrics, _ = evaluated
    assert list(metrics["tpr_at_fpr"]) == ["0.01", "0.001", "0.0001", "1e-05"]
    entry = metrics["tpr_at_fpr"]["0.01"]
    assert {"value", "low", "high", "threshold", "supported"} <= entry.keys()
    assert entry["supported"] is True
    assert entry["fpr"] <= 0.01
    unsupported = metrics["tpr_at_fpr"]["1e-05"]
    assert (unsupported["supported"], unsupported["negatives_needed"]) == (False, 299_572)
    assert unsupported["value"] is None
    assert unsupported["at_most"] == entry["high"]  # 0.01 is the least rate with support
    assert metrics["tpr0"]["low"] is None
    assert metrics["tpr0"]["max_fp"] == 0
    assert metrics["tpr10"]["value"] >= metrics["tpr0"]["value"]


def test_thresholds_come_from_the_calibration_split(evaluated):
    folder, metrics, _ = evaluated
    table = pq.read_table(folder / "val.parquet")
    negatives = np.sort(table["logit"].to_numpy()[table["label"].to_numpy() == 0])
    at_one_percent = metrics["thresholds"][0]
    assert at_one_percent["guaranteed"] is True
    assert at_one_percent["threshold"] in negatives
    assert (negatives > at_one_percent["threshold"]).mean() < 0.01
    none = metrics["thresholds"][3]
    assert none["threshold"] is None
    assert "needs 299,572 independent non-lenses" in none["reason"]
    split = metrics["calibration_split"]
    assert (split["independent"], split["reasons"]) == (True, [])
    assert split["scores_sha256"] == metrics["provenance"]["calibrate_on_sha256"]
    assert split["n_negative"] == negatives.size


def test_a_promise_is_withdrawn_everywhere(tmp_path, write_scores):
    path = write_scores(**BARE)
    trained = write_scores("train.parquet", **BARE, seed=1, split=["train"] * 1200)
    options = replace(QUICK, fprs=(0.1,), completeness_fprs=(0.1,))
    metrics = evaluate(path, tmp_path / "out", calibrate_on=trained, options=options)
    reason = "the finder was trained on the calibration split"
    for name in ("thresholds", "completeness_thresholds"):
        assert metrics[name][0]["guaranteed"] is False
        assert metrics[name][0]["threshold"] is not None
        assert metrics[name][0]["reason"] == reason
    assert metrics["calibration_split"]["reasons"] == [reason]
    assert f"No threshold is guaranteed: {reason}" in (tmp_path / "out/report.html").read_text()
    card = (tmp_path / "out/model_card.md").read_text()
    assert f"Not guaranteed: {reason}" in card
    assert ", guaranteed" not in card


def test_calibration_is_fitted_elsewhere_and_keeps_ranks(evaluated):
    _, metrics, _ = evaluated
    assert metrics["calibration"]["fitted_on"].endswith("val.parquet")
    assert metrics["calibrated"]["nll"]["value"] < metrics["nll"]["value"]
    parts = metrics["brier"]
    assert parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts[
        "within_variance"
    ] - parts["within_covariance"] == pytest.approx(parts["value"])


def test_the_completeness_table_is_the_same_in_both_forms(evaluated):
    folder, metrics, _ = evaluated
    table = pq.read_table(folder / "out" / "completeness.parquet")
    with (folder / "out" / "completeness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == table.column_names
    assert len(rows) == table.num_rows
    for name in ("n", "recovered", "completeness", "lo68", "hi68", "lo95", "hi95", "threshold"):
        as_text = [float(row[name]) if row[name] else np.nan for row in rows]
        assert np.allclose(as_text, table[name].to_numpy().astype(float), equal_nan=True)
    by_theta = table.filter(pa.compute.equal(table["axes"], "theta_e_arcsec"))
    assert by_theta["psfsize_r_lo"].null_count == by_theta.num_rows
    first = by_theta.slice(0, 3).to_pydict()
    assert sum(first["n"]) == metrics["n_positive"]
    cut = metrics["completeness_thresholds"][0]
    assert sum(first["recovered"]) == cut["tpr"]["k"]


def test_metrics_json_is_strict_json_and_what_is_returned(evaluated):
    folder, metrics, _ = evaluated

    def refuse(name):
        raise AssertionError(name)

    text = (folder / "out" / "metrics.json").read_text()
    read = json.loads(text, parse_constant=refuse)
    assert read == {name: value for name, value in metrics.items() if name != "report"}


def test_every_key_and_column_is_described(evaluated):
    """What is written is in docs/reference/metrics.md, by name."""
    folder, metrics, _ = evaluated
    root = Path(__file__).parents[3]
    text = (root / "docs/reference/metrics.md").read_text()
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    described = set(re.findall(r"`([^`]+)`", text))
    words = set(re.findall(r"\w+", " ".join(described)))
    free = {"options", "versions", "scores_metadata", "purity", "by_grade"}
    named = {"tpr_at_fpr", "average_precision_at_prevalence", "strata"}

    def keys(tree):
        for key, item in tree.items():
            yield key
            inner = item if isinstance(item, list) else [item]
            if key in free:
                continue
            for entry in inner:
                if not isinstance(entry, dict):
                    continue
                if key in named or key.startswith("auroc_by_"):
                    for part in entry.values():
                        yield from keys(part if isinstance(part, dict) else part[0])
                else:
                    yield from keys(entry)

    missing = {key for key in keys(metrics) if key != "report" and key not in words}
    assert missing == set()
    columns = pq.read_schema(folder / "out" / "completeness.parquet").names
    assert set(columns) <= described
    assert len(columns) == 30


def test_the_card_states_the_figures_of_the_page(evaluated):
    folder, metrics, _ = evaluated
    card = (folder / "out" / "model_card.md").read_text()
    for heading in ("Model", "Intended use", "Evaluation data", "Measured", "Limits", "Provenance"):
        assert f"## {heading}" in card
    assert f"| AUROC | {metrics['auroc']['value']:.4f} [" in card
    assert metrics["provenance"]["scores_sha256"] in card
    assert "1 of 2" in card
    assert "{{" not in card
    # A row of a table that is cut by an empty line is no row.
    for block in re.split(r"\n\s*\n", card):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, block


def test_the_page_needs_nothing_beside_it(evaluated):
    folder, metrics, _ = evaluated
    page = (folder / "out" / "report.html").read_text()
    assert metrics["report"] == str(folder / "out" / "report.html")

    class Links(HTMLParser):
        def __init__(self):
            super().__init__()
            self.outside, self.images = [], 0

        def handle_starttag(self, tag, attributes):
            assert tag not in ("script", "link", "iframe", "object")
            for name, value in attributes:
                if name in ("src", "href", "srcset", "data") and not value.startswith(
                    ("data:", "#")
                ):
                    self.outside.append(value)
            self.images += tag == "img"

    parser = Links()
    parser.feed(page)
    assert {*parser.outside} <= {f"{path.name}/" if path.is_dir() else path.name
                                 for path in (folder / "out").iterdir()}  # fmt: skip
    assert parser.images >= 10
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?data:)", page)
    assert f"{metrics['auroc']['value']:.3f}" in page


def test_each_figure_comes_as_pdf_png_and_numbers(evaluated):
    folder, _, _ = evaluated
    figures = folder / "out" / "figures"
    names = {path.stem for path in figures.iterdir()}
    assert {"roc", "roc_log", "reliability", "scores", "purity"} <= names
    assert {"completeness_theta_e_arcsec", "completeness_theta_e_arcsec_psfsize_r"} <= names
    assert {"fpr_psfsize_r", "fpr_psfdepth_r", "auroc_theta_e"} <= names
    for name in names:
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len((figures / f"{name}.csv").read_text().splitlines()) > 1


def test_progress_rises_to_one(evaluated):
    _, _, stages = evaluated
    shares = [done for _, done in stages]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_calibrating_on_another_model_is_refused(write_scores, tmp_path):
    one = write_scores("one.parquet", {"checkpoint_sha256": "aa"})
    other = write_scores("other.parquet", {"checkpoint_sha256": "bb"}, seed=1)
    with pytest.raises(ScoresError, match="another checkpoint_sha256"):
        evaluate(one, tmp_path / "out", calibrate_on=other, options=QUICK)
    assert not (tmp_path / "out").exists()


def test_another_precision_calibrates_nothing_and_a_comparison_tells_of_rounding(
    write_scores, tmp_path
):
    scored = {"checkpoint": "best.pt", "checkpoint_sha256": "aa"}
    older = write_scores("older.parquet", scored, **BARE)
    rounded = scored | {"precision": "bf16"}
    other = write_scores("other.parquet", rounded, seed=1, **BARE)
    message = r"other.parquet was scored in bf16 and .*older.parquet in float32"
    with pytest.raises(ScoresError, match=message):
        evaluate(older, tmp_path / "out", calibrate_on=other, options=QUICK)
    with pytest.raises(ScoresError, match=message):
        evaluate(older, tmp_path / "out", catalog=known_lens(tmp_path), catalog_scores=other,
                 options=QUICK)  # fmt: skip
    assert not (tmp_path / "out").exists()
    foreign = write_scores("foreign.parquet", seed=1, **BARE)  # does not say how it was made
    rival = write_scores("rival.parquet", scored, seed=1, **BARE)
    found = evaluate(
        other, tmp_path / "out", calibrate_on=foreign, compare_with=rival, options=QUICK
    )
    assert found["calibration"]
    text = "computed in bf16, those compared with in float32: the differences include rounding"
    assert any(text in note["text"] for note in found["notes"])
    exact = read_scores(rival)
    assert comparison_notes(exact, exact) == []
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert "| Precision of scoring | bf16 |" in card


def known_lens(folder):
    path = folder / "known.csv"
    path.write_text("name,RA,DEC,grading\nA,1,0,confident\n")
    return path


@pytest.fixture(scope="module")
def stamped(tmp_path_factory):
    """A small dataset, and what scores of its test split say of it."""
    folder = tmp_path_factory.mktemp("stamped")
    rng = np.random.default_rng(0)
    table = make_table(rows=64, regions=8)
    for statistic, value in (("median", 0.01), ("scale", 0.02)):
        for band in "grz":
            numbers = pa.array(np.full(64, value, np.float32))
            table = table.append_column(f"{statistic}_{band}", numbers)
    pixels = rng.normal(size=(64, 3, 64, 64)).astype(np.float16)
    spec = NormalizationSpec(mode="mad_stamp", clip=10.0)
    manifest = write_dataset(folder / "ds", {"test": (pixels, table)}, spec, shard_rows=40)
    return {"dataset": str(folder / "ds"), "dataset_id": manifest.dataset_id}


@pytest.fixture(scope="module")
def bare(stamped, tmp_path_factory):
    """An evaluation of a table with four columns, of a checkpoint with an evil name.

    It was scored on another dataset than the one that lies where it says, of another survey.
    """
    folder = tmp_path_factory.mktemp("bare")
    table = make_table(**BARE, split=None)
    metadata = {"checkpoint": "<script>alert(1)</script>", **stamped, "dataset_id": "0" * 64}
    metadata |= {"geometry": PAIR.to_dict(), "account": {"rows": 5, "filtered": {}, "rates": []}}
    table = table.replace_schema_metadata({"lenstrain": json.dumps(metadata)})
    pq.write_table(table, folder / "scores.parquet")
    return folder, evaluate(folder / "scores.parquet", folder / "out", options=QUICK)


def test_four_columns_are_enough(bare):
    folder, metrics = bare
    assert metrics["strata"] == {}
    assert "auroc_by_theta_e" not in metrics
    assert len(metrics["completeness_left_out"]) == 2
    table = pq.read_table(folder / "out" / "completeness.parquet")
    assert table.num_rows == 0
    assert {"theta_e_arcsec_lo", "threshold", "n", "lo95"} <= set(table.column_names)


def test_the_card_names_survey_bands_and_scale(bare, evaluated):
    card = (bare[0] / "out" / "model_card.md").read_text()
    assert "| Input | 32 x 32 stamps in nir, Y; 0.3″ a pixel; " in card
    assert "a survey like pair by" in card
    card = (evaluated[0] / "out" / "model_card.md").read_text()
    assert "| Input | 64 x 64 stamps in g, r, z; 0.262″ a pixel; " in card
    assert "a survey like DECaLS by" in card


def test_text_from_outside_is_escaped(bare):
    page = (bare[0] / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_what_is_empty_is_left_out_of_the_provenance(bare):
    page = (bare[0] / "out" / "report.html").read_text()
    assert '<th scope="row">Account</th><td>rows 5</td>' in page


def test_a_failure_leaves_nothing_and_keeps_what_was_there(bare, monkeypatch):
    folder, before = bare
    listing = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr("lenstrain.pages.evaluate.save_plot", lambda plot, figures: 1 / 0)
    for name in ("out", "new"):
        with pytest.raises(ZeroDivisionError):
            evaluate(folder / "scores.parquet", folder / name, options=QUICK)
    assert sorted(path.name for path in folder.iterdir()) == listing
    kept = json.loads((folder / "out" / "metrics.json").read_text())
    assert kept["provenance"] == before["provenance"]


def test_other_folders_are_refused(bare, tmp_path):
    (tmp_path / "chapter1.tex").write_text("years of work")
    scores = bare[0] / "scores.parquet"
    with pytest.raises(StorageError, match=r"not empty and holds no metrics\.json"):
        evaluate(scores, tmp_path, options=QUICK)
    with pytest.raises(StorageError, match="is a file"):
        evaluate(scores, scores, options=QUICK)


def test_a_new_evaluation_replaces_the_old_and_has_stamps_of_the_dataset_that_scores_name(
    bare, stamped, write_scores, tmp_path
):
    path = write_scores(rows=64, regions=8, metadata=stamped, **BARE)
    out = tmp_path / "reports" / "out"
    shutil.copytree(bare[0] / "out", out)
    (out / "figures" / "old.txt").write_text("stale")
    evaluate(path, out, options=QUICK)
    assert not (out / "figures" / "old.txt").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    page = (out / "report.html").read_text()
    assert page.count('class="enlarge"') == 9
    table = pq.read_table(path)
    negative = table.filter(pa.compute.equal(table["label"], 0)).sort_by([("logit", "descending")])
    shown = re.findall(r'<button[^>]*aria-label="Enlarge: \S+ (\w+)"', page)
    assert shown[:3] == negative["key"].to_pylist()[:3]


def test_example_stamps_that_do_not_fit_into_memory_say_what_to_set(
    stamped, write_scores, tmp_path, monkeypatch
):
    path = write_scores(rows=64, regions=8, metadata=stamped, **BARE)
    monkeypatch.setattr(examples, "denormalize", lambda *_: np.empty(10**15))
    with pytest.raises(OutOfMemoryError, match=r"^Drawing 3 example.* Unable to .* examples lower"):
        evaluate(path, tmp_path / "out", options=QUICK)
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_the_one_scored_is_refused_if_given(bare, stamped, tmp_path):
    folder, metrics = bare
    path = folder / "scores.parquet"
    with pytest.raises(ScoresError, match="was scored on dataset 000000000000"):
        evaluate(path, tmp_path / "out", dataset=stamped["dataset"], options=QUICK)
    with pytest.raises(DatasetError, match="no such dataset"):
        evaluate(path, tmp_path / "out", dataset=tmp_path / "gone", options=QUICK)
    said = [note["text"] for note in metrics["notes"]]
    assert any(text.startswith("No example stamps") and "0" * 12 in text for text in said)


def test_counterfactuals_have_a_section_and_change_no_other_figure(tmp_path):
    """Every input with and without them: calibration, comparison, known lenses, selection."""
    written = {}
    for name in ("without", "having"):
        folder = tmp_path / name
        folder.mkdir()
        for split, seed in (("test", 1), ("val", 2)):
            table = make_table(rows=2000, seed=seed, ra=np.arange(2000) * 0.01)
            table = table.append_column("dec", pa.array(np.zeros(2000)))
            table = table if name == "without" else add_families(table, BY_FLUX, families=200)
            pq.write_table(table, folder / f"{split}.parquet")
        (folder / "known.csv").write_text("name,RA,DEC,grading\nA,0,0,A\nB,3,0,B\nC,9,0,A\n")
        evaluate(
            folder / "test.parquet",
            folder / "out",
            calibrate_on=folder / "val.parquet",
            compare_with=folder / "test.parquet",
            catalog=folder / "known.csv",
            selection_function=True,
            options=replace(
                QUICK,
                resamples=20,
                prevalence=(1e-3,),
                selection_resamples=2,
                selection_axes=("theta_e_arcsec", "psfsize_r"),
                completeness_axes=(("theta_e_arcsec",),),
            ),
        )
        files = {path.relative_to(folder): path.read_bytes() for path in folder.glob("out/**/*.*")}
        written[name] = {str(path): data.replace(str(folder).encode(), b"")
                         for path, data in files.items()}  # fmt: skip
    without, having = written.values()
    told = ("metrics.json", "report.html", "model_card.md", "selection_function")
    assert {*having} - {*without} == {f"out/figures/pairs_theta_e_over_psf.{kind}"
                                      for kind in ("pdf", "png", "csv")}  # fmt: skip
    for name in without:
        if not name.startswith(tuple(f"out/{one}" for one in told)):
            assert having[name] == without[name], name
    one, other = (json.loads(files["out/metrics.json"]) for files in written.values())
    made = other.pop("counterfactuals")
    for content in (one, other):
        del content["provenance"], content["notes"]
        for entry in (content["calibration_split"], content["known_lenses"]):
            for key in [key for key in entry if key.endswith("sha256")]:
                del entry[key]
    assert json.dumps(other) == json.dumps(one)
    report = having["out/report.html"].decode()
    section = report[report.index('<h2 id="counterfactuals">') :].split("<h2")[1]
    assert made["pairs"]["words"] in section
    assert f"{100 * made['kinds']['magnified']['pass_rate']['value']:.1f}%" in section
    assert 'id="pairs_theta_e_over_psf"' in section
    assert "that of smooth light (unlensed, magnified, extended)" in section
    card = having["out/model_card.md"].decode()
    assert made["pairs"]["words"] in card
    (row,) = [line for line in card.splitlines() if line.startswith("| magnified |")]
    for name in ("by_kind", "across_by_kind"):
        assert f"{made['pairs'][name]['magnified']['value']:.3f} [" in row
    for name in ("out/report.html", "out/model_card.md"):
        assert "ounterfactual" not in without[name].decode()
    rows = list(
        csv.DictReader(having["out/figures/pairs_theta_e_over_psf.csv"].decode().splitlines())
    )
    assert {row["kind"] for row in rows} == {"smooth light, all kinds", *made["pairs"]["by_kind"]}


def test_stamps_are_those_of_their_rows_beside_counterfactuals(tmp_path):
    """Unconverted stamps are found by the place that the file's row names."""
    table = make_table(rows=60, source_row=pa.array(np.arange(60)))
    for name, column in (("source_file", ["f"] * 60), ("source_row_group", [0] * 60)):
        table = table.append_column(name, pa.array(column))
    mixed = add_families(table, BY_FLUX, families=20)
    pq.write_table(mixed, tmp_path / "s.parquet")
    scores = read_scores(tmp_path / "s.parquet")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lensprep.decode.parts.tree_stamps", lambda uri, origins, source: asked.extend(origins)
        )
        patch.setattr(examples, "lupton_rgb", lambda stamps, geometry: stamps)
        examples._source_rgb("tree", {"kind": "tree"}, scores, DECALS, np.array([0, 7, 59]))
    assert [origin["source_row"] for origin in asked] == [0, 7, 59]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """An evaluation of real and simulated rows with features; kinds are hostile and many."""
    folder = tmp_path_factory.mktemp("mixed")
    kinds = [f"=kind<b>{i % 31}" for i in range(360)]
    for name, seed in (("test", 1), ("val", 2)):
        table = make_mixed(real=360, seed=seed, kind=kinds)
        values = np.random.default_rng(seed).normal(0, 1, (table.num_rows, 4)).astype(np.float32)
        values[1500:, 0] += 4 * table["label"].to_numpy()[1500:]
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)
        pq.write_table(table.append_column("embedding", embedding), folder / f"{name}.parquet")
    result = evaluate(folder / "test.parquet", folder / "out",
                      calibrate_on=folder / "val.parquet", compare_with=folder / "test.parquet",
                      options=QUICK)  # fmt: skip
    return folder / "out", result


def test_real_and_simulated_rows_have_a_section_of_their_own(mixed):
    out, metrics = mixed
    page = (out / "report.html").read_text()
    lenses = metrics["origins"]["simulated"]["n_positive"]
    assert f"{lenses:,} simulated lenses and" in page
    assert f"{lenses:,} simulated lenses and" in (out / "model_card.md").read_text()
    assert "are of the simulated rows alone" in page
    for name in ("simulated", "real"):
        assert f"{metrics['origins'][name]['auroc']['value']:.4f}" in page
    assert "Recall by grade, FPR 1%" in page
    assert '<th scope="row">A</th><td>real</td><td>40</td>' in page
    assert "the 25 largest of each origin" in page
    assert "=kind&lt;b&gt;1<" in page
    assert "AUROC, real rows" in page
    assert metrics["comparison"]["origins"]["real"]["auroc"]["value"] == 0


def test_the_gap_is_one_figure_of_each_class(mixed):
    out, metrics = mixed
    gap = metrics["sim_to_real"]
    assert gap["lenses"]["value"] > 0.98
    assert abs(gap["non_lenses"]["value"] - 0.5) < 0.1
    page = (out / "report.html").read_text()
    assert "Real against simulated lenses" in page
    assert f"{gap['lenses']['value']:.3f}" in page


def test_every_grade_and_kind_is_in_a_table(mixed):
    out, metrics = mixed
    with (out / "origins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [row for row in rows if row["origin"] == "real" and row["class"] == "non-lens"]
    cuts = len(metrics["origins"]["real"]["recall"])
    assert len(kinds) == 32 * cuts  # all, and 31 kinds
    assert all(row["group"] in ("all",) or row["group"].startswith("'=kind") for row in kinds)
    grade = next(row for row in rows if row["group"] == "A")
    entry = metrics["origins"]["real"]["recall"][0]["by_grade"]["A"]
    for name in ("k", "n", "lo68", "hi68", "lo95", "hi95", "low", "high"):
        assert float(grade[name]) == entry[name]
    assert grade["upper_limit"] == ""


def test_an_origin_of_one_class_and_a_gap_that_was_not_run_are_explained(tmp_path):
    table = make_mixed(simulated=600)
    kept = (np.arange(table.num_rows) < 600) | (table["label"].to_numpy() == 1)
    pq.write_table(table.filter(pa.array(kept)), tmp_path / "s.parquet")
    options = replace(QUICK, completeness_axes=(("psfsize_r",),))
    evaluate(tmp_path / "s.parquet", tmp_path / "out", options=options)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "n/a, real: lenses alone" in page
    assert "0 real non-lenses: a probe needs 30 or more" in page
    assert "infer --embeddings" in page


def test_simulated_rows_alone_have_no_such_section(evaluated):
    folder, metrics, _ = evaluated
    assert not {"origin", "origins", "sim_to_real"} & metrics.keys()
    assert "origins" not in metrics["comparison"]
    assert not (folder / "out" / "origins.csv").exists()
    assert "Real and simulated" not in (folder / "out" / "report.html").read_text()


def run_cell(text, names):
    """Run a cell as a notebook does: its last expression is shown, as a picture if it is one."""
    *body, last = ast.parse(text).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), text, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), text, "eval"), names)
        getattr(value, "_repr_png_", value.__repr__)()
        return value


def test_the_example_notebook_runs_on_what_the_demo_leaves(evaluated, tmp_path, monkeypatch):
    folder, result, _ = evaluated
    demo, splits = tmp_path / "demo", {}
    for number, split in enumerate(("train", "test")):
        table = pq.read_table(folder / "test.parquet").slice(100 * number, 100)
        made = np.where(table["label"].to_numpy() == 0, "unlensed", None)
        table = table.append_column("counterfactual", pa.array(made.tolist(), pa.string()))
        table = table.append_column("ra", pa.array(np.linspace(359, 361, 100) % 360))
        table = table.append_column("dec", pa.array(np.full(100, -30.0)))
        for name in DECALS.band_columns("median", "scale"):
            table = table.append_column(name, pa.array(np.ones(100, np.float32)))
        splits[split] = (tiny_pixels(100), table.drop_columns(["logit", "split"]))
    write_dataset(demo / "dataset", splits, SPEC, shard_rows=50)
    pq.write_table(table, demo / "test.parquet")
    shutil.copytree(folder / "out", demo / "report")
    here = tmp_path / "docs" / "tutorials"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    matplotlib.use("agg")
    page = Path(__file__).parents[3] / "docs/tutorials/notebook.ipynb"
    cells = [c for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    names = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    assert isinstance(shown[1], Dataset)
    assert names["auroc"]["value"] == result["auroc"]["value"]
    assert names["batch"].pixels.shape == (64, *DECALS.shape)
    assert names["stamp"].theta_e_arcsec >= 1
    matplotlib.pyplot.close("all")
