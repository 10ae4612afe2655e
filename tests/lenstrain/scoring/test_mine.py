"""Hard-negative mining: which controls are chosen, which are spared, and what training does."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lensprep.errors import ScoresError
from lenstrain.cli import main
from lenstrain.config import DataConfig
from lenstrain.data import StampLoader
from lenstrain.scoring.mine import MiningOptions, mine
from lenstrain.training.run import sample_weights
from tests.datasets import tiny_dataset

ARCSEC = 1 / 3600


def scores_file(path, rows=40, **columns):
    """Half lenses, half controls; row i has logit i, so that the last controls are the hardest."""
    n = np.arange(rows)
    table = {
        "key": [f"1{i:031x}" for i in n],
        "label": pa.array(n % 2, pa.int8()),
        "logit": pa.array(n.astype(np.float32)),
        "psfsize_r": np.where(n < rows // 2, 1.0, 1.5),
        "split": ["train"] * rows,
        "ra": 150.0 + n * 0.01,
        "dec": np.full(rows, 2.0),
    }
    table = pa.table(table | columns).replace_schema_metadata({"lenstrain": '{"dataset_id": "a"}'})
    pq.write_table(table, path)
    return path


def mined(path):
    return pq.read_table(path).to_pydict()


def test_a_counterfactual_is_no_control_to_be_mined(tmp_path):
    alone = mine([scores_file(tmp_path / "a.parquet")], tmp_path / "alone.parquet")
    kinds = [None] * 40 + ["unlensed", "lensed"] * 10
    both = scores_file(
        tmp_path / "s.parquet",
        60,
        label=pa.array([*(i % 2 for i in range(40)), *[0, 1] * 10], pa.int8()),
        psfsize_r=[*np.where(np.arange(40) < 20, 1.0, 1.5), *[1.0] * 20],
        counterfactual=pa.array(kinds, pa.string()),
    )
    result = mine([both], tmp_path / "hard.parquet")
    assert result["counterfactuals"] == 20
    assert (result["controls"], result["bins"]) == (alone["controls"], alone["bins"])
    assert mined(tmp_path / "hard.parquet") == mined(tmp_path / "alone.parquet")
    done = CliRunner().invoke(main, ["mine", str(both), "--out", str(tmp_path / "again.csv")])
    assert "20 counterfactuals left out: no controls." in done.output


def test_the_hardest_controls_of_every_psf_bin_are_listed(tmp_path):
    options = MiningOptions(fraction=0.2, psf_edges=(1.2,), factor=3.0)
    result = mine([scores_file(tmp_path / "s.parquet")], tmp_path / "hard.parquet", options=options)
    listed = mined(tmp_path / "hard.parquet")
    # Ten controls (the even rows) in each bin, so the two best of each.
    assert listed["logit"] == [18, 16, 38, 36]
    assert listed["psf_bin"] == [0, 0, 1, 1]
    assert listed["rank"] == [1, 2, 1, 2]
    assert set(listed["weight"]) == {3.0}
    assert set(listed["label"]) == {0}
    assert [(b["controls"], b["hard"], b["logit_cut"]) for b in result["bins"]] == [
        (10, 2, 16),
        (10, 2, 36),
    ]
    assert any("catalogue" in note for note in result["notes"])


def test_a_control_at_a_known_lens_is_spared_and_one_beyond_the_radius_is_not(tmp_path):
    catalog = tmp_path / "lenses.csv"
    # 3 arcsec north of row 38, and 8 arcsec north of row 36.
    catalog.write_text(f"ra,dec\n150.38,{2 + 3 * ARCSEC}\n150.36,{2 + 8 * ARCSEC}\n")
    scores = scores_file(tmp_path / "s.parquet")
    options = MiningOptions(fraction=0.2, psf_edges=(1.2,), radius_arcsec=5.0)
    result = mine([scores], tmp_path / "hard.parquet", catalog=catalog, options=options)
    assert result["excluded"] == 1
    assert result["notes"] == []
    assert mined(tmp_path / "hard.parquet")["logit"] == [18, 16, 36, 34]


def test_a_control_that_comes_many_times_does_not_fill_the_list(tmp_path):
    images = ["same" if i >= 20 and i != 20 else f"{i}" for i in range(40)]
    options = MiningOptions(fraction=0.5, psf_edges=(1.2,))
    scores = scores_file(tmp_path / "s.parquet", pixel_hash=images)
    result = mine([scores], tmp_path / "hard.parquet", options=options)
    # The upper bin has two distinct images; the better one comes nine times.
    assert result["bins"][1]["images"] == 2
    assert result["bins"][1]["hard"] == 1  # the copy that reaches the cut


def test_rows_without_a_psf_have_a_bin_of_their_own(tmp_path):
    psf = np.where(np.arange(40) < 20, np.nan, 1.5)
    scores = scores_file(tmp_path / "s.parquet", psfsize_r=psf)
    mine([scores], tmp_path / "h.parquet", options=MiningOptions(fraction=0.1, psf_bins=1))
    assert mined(tmp_path / "h.parquet")["psf_bin"] == [-1, 0]


def test_several_tables_count_by_their_mean_logit(tmp_path):
    first = scores_file(tmp_path / "a.parquet")
    second = scores_file(tmp_path / "b.parquet", logit=pa.array(-3.0 * np.arange(40)))
    options = MiningOptions(fraction=0.05, psf_edges=())
    mine([first, second], tmp_path / "h.parquet", options=options)
    assert mined(tmp_path / "h.parquet")["logit"] == [0.0]  # row 0: all others fell below


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"logit": pa.array(np.full(40, np.nan))}, "not finite"),
        ({"key": ["1"] * 40}, "more than once"),
        ({"label": pa.array(np.ones(40), pa.int8())}, "no control"),
        ({"label": ["lens"] * 40}, "column label holds string, not numbers"),
        ({"psfsize_r": ["good"] * 40}, "column psfsize_r holds string, not numbers"),
        ({"key": pa.nulls(40)}, "40 rows have no key"),
        ({"split": [["train"]] * 40}, "column split holds list.*, not plain values"),
    ],
)
def test_unusable_scores_are_refused(tmp_path, columns, message):
    scores = scores_file(tmp_path / "s.parquet", **columns)
    with pytest.raises(ScoresError, match=message):
        mine([scores], tmp_path / "h.parquet")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.open(tiny_dataset(tmp_path_factory.mktemp("mine"), 40, signal=True))


def test_training_shows_a_hard_control_as_often_as_its_weight_says(dataset, tmp_path):
    options = MiningOptions(fraction=0.1, psf_edges=(), factor=5.0)
    mine([scores_file(tmp_path / "s.parquet")], tmp_path / "h.parquet", options=options)
    data = load_config(DataConfig, None, [f'sample_weights="{tmp_path / "h.parquet"}"'])
    weights = sample_weights(dataset, data)
    assert np.flatnonzero(weights != 1).tolist() == [36, 38]
    loader = StampLoader(dataset.uri, batch_size=8, weights=weights)
    counts = np.zeros(40)
    for epoch in range(10):
        loader.set_epoch(epoch)
        for batch in loader:
            np.add.at(counts, batch.index[batch.weight > 0].numpy(), 1)
    loader.close()
    assert counts.sum() == 400
    ratio = counts[[36, 38]].mean() / np.delete(counts, [36, 38]).mean()
    assert 4.4 < ratio < 5.6


def test_the_command_prints_one_object(tmp_path):
    scores = scores_file(tmp_path / "s.parquet")
    arguments = ["mine", str(scores), "--out", str(tmp_path / "h.parquet"), "--json"]
    done = CliRunner().invoke(main, [*arguments, "--set", "psf_bins=2"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["hard"] == len(mined(tmp_path / "h.parquet")["key"]) == 2


def test_a_control_off_the_sky_is_one_clear_error(tmp_path):
    catalog = tmp_path / "lenses.csv"
    catalog.write_text("RA [deg],lat\n150.38,2\n")
    scores = tmp_path / "train.parquet"
    columns = {"key": ["a", "b"], "label": [0, 0], "logit": [1.0, 2.0], "psfsize_r": [1.2, 1.3]}
    table = pa.table(columns | {"ra": [150.38, 10.0], "dec": [2.0, 91.0]})
    pq.write_table(table, scores)
    arguments = ["mine", str(scores), "--out", str(tmp_path / "hard.parquet"), "--catalog",
                 str(catalog), "--catalog-column", "dec=lat"]  # fmt: skip
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 1
    assert failed.output.startswith(
        f"Error: {scores}: 1 rows have a position that is not on the sky"
    )
    assert "row 2, key b: ra 10, dec 91" in failed.output
    pq.write_table(table.set_column(5, "dec", [[2.0, None]]), scores)
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["excluded"] == 1
    without = CliRunner().invoke(main, [*arguments[:4], *arguments[6:]])
    assert without.exit_code == 2
    assert "--catalog-column needs --catalog" in without.output


def test_scores_of_somebody_else_say_what_they_are(tmp_path):
    columns = {"id": [f"k{i}" for i in range(30)], "label": [0] * 30,
               "logit": np.linspace(0.01, 0.99, 30), "psfsize_r": [1.0] * 30}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "theirs.parquet")
    ours = {"key": [f"k{i}" for i in range(30)], "label": pa.array([0] * 30, pa.int8()),
            "logit": np.full(30, 2.0), "psfsize_r": [1.0] * 30}  # fmt: skip
    infer = {b"lenstrain": b'{"checkpoint_sha256": "ab"}'}
    pq.write_table(pa.table(ours).replace_schema_metadata(infer), tmp_path / "ours.parquet")
    paths = [str(tmp_path / f"{name}.parquet") for name in ("theirs", "ours")]
    arguments = ["mine", *paths, "--out", str(tmp_path / "hard.parquet"), "--columns", "id=id"]
    arguments += ["--set", "psf_bins=1", "--set", "fraction=0.02"]
    assert "as probabilities do" in CliRunner().invoke(main, arguments).output
    done = CliRunner().invoke(main, [*arguments, "--scores-are", "probability"])
    assert done.exit_code == 0, done.output
    found = mined(tmp_path / "hard.parquet")
    assert found["key"] == ["k29"]
    assert found["logit"] == pytest.approx([(np.log(0.99 / 0.01) + 2) / 2])
