"""The artefact: a stranger with NumPy, or with astropy, gets our numbers."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.selection.files import write_selection
from lenstrain.evaluation.selection.measure import measure_selection, read_population

from .conftest import NAMES, as_scores, given_cut, inject

QUICK = EvaluationOptions(selection_resamples=20)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of one selection function with a population, and the function itself."""
    folder = tmp_path_factory.mktemp("written")
    population = folder / "population.csv"
    rows = [",".join(map(str, row)) for row in inject(200, seed=3).values]
    population.write_text("\n".join([",".join(NAMES), *rows]))
    scores = as_scores(inject(3000, seed=1), folder)
    table = read_population(population, scores, QUICK)
    selection = measure_selection(scores, given_cut(), table, QUICK)
    write_selection(folder, selection)
    return folder, selection


@pytest.fixture(scope="module")
def stranger(written):
    """The evaluator as somebody else would import it."""
    spec = importlib.util.spec_from_file_location("stranger", written[0] / "selection_function.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("level", [0.68, 0.95])
def test_the_evaluator_gives_our_numbers(written, stranger, level):
    function = written[1].function
    values = inject(3000, seed=2).values
    rng = np.random.default_rng(0)
    # In between, on the nodes, on the very ends, and beyond.
    values[::2] += rng.normal(0, 0.3, (1500, 4))
    values[:8, 1] = function.axes[1].nodes[[0, -1] * 4]
    values[8:12, 2] = [0.0, -3.0, np.nan, np.inf]
    ours = function.evaluate(values)
    theirs = stranger.evaluate(level=level, **dict(zip(NAMES, values.T, strict=True)))
    assert 0.2 < np.isfinite(ours.value).mean() < 0.95
    for mine, other in zip((ours.value, *ours.bounds[level]), theirs, strict=True):
        assert (np.isnan(mine) == np.isnan(other)).all()
        assert np.nanmax(np.abs(mine - other)) < 1e-10


def test_the_evaluator_takes_numbers_and_grids(stranger):
    c, low, high = stranger.evaluate(theta_e_arcsec=1, psfsize_r=1.3, arc_snr=12, src_dmag=1)
    assert c.shape == ()
    assert 0 < low < c < high < 1
    theta, seeing = np.array([0.6, 1.0, 1.5])[:, None], np.array([1.2, 1.3])
    grid = stranger.evaluate(theta_e_arcsec=theta, psfsize_r=seeing, arc_snr=12, src_dmag=1)
    assert [part.shape for part in grid] == [(3, 2)] * 3
    assert grid[0][1, 1] == pytest.approx(c, abs=1e-12)


NUMPY_ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "selection_function"}:
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
try:
    import scipy
except ImportError:
    sys.path.insert(0, "")
    from selection_function import evaluate
    c, low, high = evaluate(theta_e_arcsec=[1, 1.5], psfsize_r=1.3, arc_snr=12, src_dmag=1)
    print(*c.tolist(), *low.tolist(), *high.tolist())
"""


def test_the_evaluator_is_short_and_two_files_and_numpy_are_all_it_needs(
    written, stranger, tmp_path
):
    for name in ("selection_function.py", "selection_function.json"):
        shutil.copy(written[0] / name, tmp_path)
    assert len((tmp_path / "selection_function.py").read_text().splitlines()) <= 50
    done = subprocess.run(
        [sys.executable, "-I", "-c", NUMPY_ALONE], cwd=tmp_path, capture_output=True, text=True
    )
    expected = stranger.evaluate(theta_e_arcsec=[1, 1.5], psfsize_r=1.3, arc_snr=12, src_dmag=1)
    assert done.stdout.split() == [str(value) for value in np.concatenate(expected)], done.stderr


def test_the_table_has_c_in_every_cell_of_the_support(written):
    folder, selection = written
    table = pq.read_table(folder / "selection_function.parquet")
    function = selection.function
    values = np.stack([table[name].to_numpy() for name in NAMES], axis=1)
    expected = function.evaluate(values)
    supported = table["supported"].to_numpy(zero_copy_only=False)
    assert table["completeness"].null_count == (~supported).sum() > 0
    found = table["completeness"].to_numpy()[supported]
    assert found == pytest.approx(expected.value[supported], abs=1e-12)
    for name, ends in {"68": expected.bounds[0.68], "95": expected.bounds[0.95]}.items():
        for side, end in zip(("lo", "hi"), ends, strict=True):
            column = table[f"{side}{name}"].to_numpy()
            assert column[supported] == pytest.approx(end[supported], abs=1e-12)
    assert (table["n"].to_numpy() >= 5).tolist() == supported.tolist()
    assert table.schema.field("psfsize_r").metadata == {b"unit": b"arcsec"}
    share = table["population_share"].to_numpy().sum()
    assert share == pytest.approx(1 - selection.population.outside_share)
    n, weight = table["n"].to_numpy(), table["injection_weight"].to_numpy()
    assert np.nansum(n * weight) / n.sum() == pytest.approx(share)


def test_astropy_alone_reads_the_fit(written):
    folder, selection = written
    fit = selection.function.fit
    with fits.open(folder / "selection_function.fits") as hdus:
        table = hdus["SELECTION"]
        assert table.columns["theta_e_arcsec"].unit == "arcsec"
        assert table.columns["src_dmag"].unit == "mag"
        ours = pq.read_table(folder / "selection_function.parquet")
        for name in ours.column_names:
            column = ours[name].to_numpy(zero_copy_only=False)
            assert np.array_equal(table.data[name], column, equal_nan=column.dtype.kind == "f")
        assert np.array_equal(hdus["COEF"].data, fit.coefficients)
        assert np.array_equal(hdus["DRAWS"].data, fit.draws)
        assert np.array_equal(hdus["COVMODEL"].data, fit.posterior)
        assert np.array_equal(hdus["COUNTS"].data, selection.function.support.n)
        knots = hdus["KNOTS"].data
        seeing = knots["value"][(knots["axis"] == "psfsize_r") & (knots["kind"] == "knot")]
        assert np.array_equal(seeing, selection.function.axes[1].knots)
        model = json.loads(hdus["MODEL"].data["json"][0])
    ours = json.loads((folder / "selection_function.json").read_text())
    assert set(ours) - set(model) == {"coefficients", "covariances", "draws", "supported"}
    assert model == {name: ours[name] for name in model}
    assert model["threshold"]["value"] == 0.5


def test_draws_carry_the_error_on(written, stranger):
    draws = np.array(stranger.MODEL["draws"])
    assert draws.shape == written[1].function.fit.draws.shape
    regions = stranger.MODEL["n_regions"]
    spread = np.cov(draws.T) * regions / (regions - 1)
    by_region = np.array(stranger.MODEL["covariances"][0])
    # What is left is the bias of the penalty, which only adds.
    assert np.linalg.eigvalsh(by_region - spread).min() > -1e-9
