"""From a table of scores to its selection function, and what cannot become one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.errors import ConfigError, ScoresError
from lenstrain.cli import main
from lenstrain.evaluation.operating import FrozenThreshold
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.selection.measure import measure_selection, read_population

from .conftest import NAMES, as_scores, given_cut, inject

QUICK = EvaluationOptions(selection_resamples=10)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return as_scores(inject(2000, seed=1), tmp_path_factory.mktemp("scores"))


@pytest.fixture
def write_population(tmp_path, scores):
    def write(name="population.parquet", **replaced):
        columns = dict(zip(NAMES, inject(50, seed=2).values.T, strict=True)) | replaced
        table = pa.table({name: c for name, c in columns.items() if c is not None})
        pq.write_table(table, tmp_path / name)
        return read_population(tmp_path / name, scores, QUICK)

    return write


def test_what_was_fitted_is_said(scores):
    """And to which threshold: the first that exists."""
    absent = FrozenThreshold(name="FPR 1e-05", kind="neyman_pearson", threshold=None)
    entries = measure_selection(scores, [absent, *given_cut()], None, QUICK).entries
    assert entries["threshold"]["name"] == "logit 0.5"
    assert [axis["name"] for axis in entries["axes"]] == list(NAMES)
    assert [axis["constraint"] for axis in entries["axes"]] == ["rising", "falling"] * 2
    assert (entries["n"], entries["n_regions"], entries["resamples"]) == (2000, 60, 10)
    assert entries["recovered"] == int(((scores.logits > 0.5) & (scores.labels == 1)).sum())
    held = entries["held_out"]
    assert held["deviance"] < 0.6 * held["null_deviance"]
    assert sum(held["calibration"]["n"]) == 2000
    observed = np.array(held["calibration"]["observed"])
    assert observed[-1] - observed[0] > 0.8
    assert held["calibration_error"] < 0.05
    json.dumps(entries, allow_nan=False)


def test_lenses_without_a_value_are_left_out_and_counted(tmp_path):
    injections = inject(1000, seed=3)
    injections.values[:30, 2] = np.nan
    selection = measure_selection(as_scores(injections, tmp_path), given_cut(), None, QUICK)
    assert (selection.entries["n"], selection.entries["lenses_left_out"]) == (970, 30)
    assert "30 lenses lack a value" in selection.notes[0]["text"]


def test_axes_without_values_are_left_out_and_named(tmp_path):
    table = as_scores(inject(1000, seed=3), tmp_path, src_dmag=None, arc_snr=np.full(1040, np.nan))
    selection = measure_selection(table, given_cut(), None, QUICK)
    assert [axis["name"] for axis in selection.entries["axes"]] == list(NAMES[:2])
    assert selection.entries["axes_left_out"] == ["arc_snr", "src_dmag"]
    assert "without arc_snr, src_dmag" in selection.notes[0]["text"]


def test_no_axis_is_an_error_that_names_the_columns(tmp_path):
    table = as_scores(inject(100, seed=3), tmp_path, **dict.fromkeys(NAMES))
    with pytest.raises(ScoresError, match="no values in theta_e_arcsec, psfsize_r, arc_snr"):
        measure_selection(table, given_cut(), None, QUICK)


def test_no_lens_with_all_axes_is_an_error(tmp_path):
    injections = inject(100, seed=3)
    injections.values[:50, 1] = np.nan
    injections.values[50:, 2] = np.nan
    with pytest.raises(ScoresError, match="no lens has values in all of"):
        measure_selection(as_scores(injections, tmp_path), given_cut(), None, QUICK)


@pytest.mark.parametrize("value", [-1e9, 1e9])
def test_all_or_none_found_is_noted(scores, value):
    selection = measure_selection(scores, given_cut(value), None, QUICK)
    assert "of the lenses are found" in selection.notes[0]["text"]
    assert selection.entries["recovered"] in (0, 2000)
    json.dumps(selection.entries, allow_nan=False)


def test_constraints_that_the_lenses_contradict_are_noted(tmp_path):
    injections = inject(2000, seed=4)
    rate = np.where(injections.values[:, 1] > 1.3, 0.9, 0.1)
    found = np.random.default_rng(0).random(2000) < rate
    table = as_scores(injections._replace(found=found), tmp_path)
    two = {"selection_resamples": 10, "selection_axes": ("theta_e_arcsec", "psfsize_r")}
    notes = measure_selection(table, given_cut(), None, EvaluationOptions(**two)).notes
    assert "the lenses contradict one" in notes[0]["text"]
    freed = EvaluationOptions(selection_free=("psfsize_r",), **two)
    assert not measure_selection(table, given_cut(), None, freed).notes


def test_too_few_lenses_support_nothing_and_it_says_so(tmp_path):
    selection = measure_selection(
        as_scores(inject(12, regions=2, seed=5), tmp_path), given_cut(), None, QUICK
    )
    assert selection.entries["support"]["occupied"] == 0
    assert any("No cell holds enough lenses" in note["text"] for note in selection.notes)


def test_a_population_is_averaged_and_its_rest_stated(scores, write_population):
    theta = np.where(np.arange(50) < 10, 7.0, 1.5)
    population = write_population(theta_e_arcsec=theta, weight=np.where(theta > 5, 4.0, 1.0))
    selection = measure_selection(scores, given_cut(), population, QUICK)
    entry = selection.entries["population"]
    assert entry["n"] == 50
    assert entry["outside_share"] >= 0.5
    assert 0 < entry["low"] < entry["value"] < entry["high"] < 1
    assert entry["sha256"] == population.sha256
    assert "of the population's weight lies where no injections are" in selection.notes[-1]["text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arc_snr": None}, r"lacks the column arc_snr; .*selection_axes=\[\"theta_e_arcsec\""),
        ({"weight": np.full(50, -1.0)}, "50 weights are negative, null or not finite"),
        ({"weight": np.full(50, np.nan)}, "50 weights are negative, null or not finite"),
        ({"weight": np.zeros(50)}, "all weights are 0"),
        ({"theta_e_arcsec": ["a"] * 50}, "column theta_e_arcsec holds string, not numbers"),
    ],
)
def test_a_population_that_cannot_be_used_is_refused(write_population, change, message):
    with pytest.raises(ScoresError, match=message):
        write_population(**change)


def test_a_population_that_cannot_be_read_is_refused(tmp_path, scores):
    with pytest.raises(ScoresError, match=r"no such file\. --population takes"):
        read_population(tmp_path / "none.csv", scores, QUICK)
    (tmp_path / "empty.csv").write_text(",".join(NAMES) + "\n")
    with pytest.raises(ScoresError, match="has no lenses"):
        read_population(tmp_path / "empty.csv", scores, QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection_axes": ("redshift",)}, "unknown selection axis 'redshift'"),
        ({"selection_axes": ()}, "selection_axes needs distinct axes"),
        ({"selection_axes": ("arc_snr",) * 2}, "selection_axes needs distinct axes"),
        ({"selection_free": ("theta_e_over_psf",)}, "unknown selection axis"),
        ({"selection_resamples": 1}, "selection_resamples must be at least 2"),
        ({"selection_min_lenses": 0}, "selection_min_lenses must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationOptions(**change)


def test_the_command_writes_the_artefact_and_a_section(scores, tmp_path):
    population = tmp_path / "population.csv"
    population.write_text(",".join(NAMES) + "\n1.0,1.3,12,1\n9,1.3,12,1\n")
    quick = ["resamples=20", "selection_resamples=10", "examples=0", "thresholds=[0.5]"]
    quick += ["prevalence=[]", "fprs=[0.1]"]
    quick += ['completeness_axes=[["src_dmag"]]', 'selection_axes=["theta_e_arcsec", "psfsize_r"]']
    sets = [word for option in quick for word in ("--set", option)]
    arguments = ["evaluate", str(scores.path), "--out", str(tmp_path / "out"), *sets]
    done = CliRunner().invoke(main, [*arguments, "--population", str(population)])
    assert (done.exit_code, "--population needs --selection-function" in done.output) == (2, True)
    arguments += ["--selection-function", "--population", str(population)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "50.0% of it lies where no injections are" in done.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"selection_function.{kind}" for kind in ("parquet", "fits", "json", "py")} <= written
    assert (tmp_path / "out" / "figures" / "selection_function.png").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<h3 id="selection">Selection function</h3>' in page
    assert "50.0% of the population’s weight lies where no injections are" in page
