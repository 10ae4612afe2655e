"""The realism gate: real and injected lenses in feature space, told apart or not."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ScoresError
from lensprep.tables.reader import read_vectors
from lensprep.tables.writer import table_writer
from lenstrain.audit.evidence import Supplied
from lenstrain.audit.finding import NotRunError
from lenstrain.audit.realism import check_realism
from lenstrain.evaluation.gap import MOST_ROWS
from lenstrain.scoring.infer import infer
from tests.lenstrain.audit.conftest import good_logits, make_table, write_scores

WIDTH = 8


def vectors(rows, shift=0.0, seed=0, width=WIDTH):
    values = np.random.default_rng(seed).normal(0, 1, (rows, width)).astype(np.float32)
    values[:, 0] += shift
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)


def scored(path, rows=240, embedding=None, columns=None, **metadata):
    """Scores of a test split whose lenses are injected; non-lenses lie far off in feature space."""
    table = make_table("test", rows, **(columns or {}))
    if embedding is None:
        values = np.random.default_rng(1).normal(0, 1, (rows, WIDTH)).astype(np.float32)
        values[table["label"].to_numpy() == 0] += 50
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)
    if embedding is not False:
        table = table.append_column("embedding", embedding)
    return write_scores(path, table, good_logits(table), **metadata)


def real(path, embedding, **columns):
    logits = pa.array(np.ones(len(embedding)), pa.float32())
    pq.write_table(pa.table({"logit": logits, "embedding": embedding, **columns}), path)
    return path


@pytest.fixture
def judged(run_evidence, config, tmp_path):
    def judge(embedding, scores=None, **columns):
        run_evidence.supplied = Supplied(
            scores=scores or scored(tmp_path / "test.parquet"),
            real=real(tmp_path / "real.parquet", embedding, **columns),
        )
        return check_realism(run_evidence, config)

    return judge


def test_lenses_of_one_kind_pass(judged):
    found = judged(vectors(100))
    assert found.passed
    assert found.measured["value"] < 0.65
    assert (found.measured["real"], found.measured["injected"]) == (100, 120)
    assert found.measured["features"] == WIDTH


@pytest.mark.parametrize("rows", [100, 20])
def test_lenses_that_the_network_tells_apart_warn_however_few(judged, rows):
    found = judged(vectors(rows, shift=6.0))
    assert not found.passed
    assert found.measured["value"] > 0.99
    assert "distinguishes them" in found.detail


def test_few_real_lenses_of_no_region_are_spread_over_the_folds(judged, tmp_path):
    """In folds of equal size alone the twenty would fill up the smallest, and none be learnt."""
    big = {"region_id": lambda row: row // 200}  # of the last a half only
    scores = scored(tmp_path / "many.parquet", rows=900, columns=big)
    found = judged(vectors(20, shift=6.0), scores)
    assert found.measured["real"] == 20
    assert found.measured["value"] > 0.99


def test_fewer_lenses_than_features_clear_nothing(judged):
    with pytest.raises(NotRunError, match="Give at least 8 real lenses with `--real`"):
        judged(vectors(7))


def test_fewer_lenses_than_folds_are_too_few(judged, recwarn):
    with pytest.raises(NotRunError, match="4 real and 120 injected lenses are too few"):
        judged(vectors(4, shift=6.0))
    assert not recwarn


def test_rows_of_one_region_are_in_one_fold(judged):
    """All the difference lies in two regions' own sky: another region cannot learn it."""
    sky = np.repeat([3.0, -3.0], 50)
    values = np.random.default_rng(0).normal(0, 0.3, (100, WIDTH))
    values[:, 1] += sky
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel().astype("f4")), WIDTH)
    apart = judged(embedding)
    together = judged(embedding, region_id=np.repeat([900_001, 900_002], 50))
    assert together.measured["regions"] == apart.measured["regions"] - 98


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (6.0, False)])
def test_own_real_lenses_are_compared_with_the_injected_ones(
    run_evidence, config, tmp_path, shift, passed
):
    """Every fourth row is real; the lenses among them lie apart or not."""
    rows = 1200
    origin = ["real" if i // 2 % 2 else None for i in range(rows)]
    real_row = np.array([name == "real" for name in origin])
    values = np.random.default_rng(1).normal(0, 1, (rows, WIDTH)).astype(np.float32)
    values[real_row, 3] += shift
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)
    columns = {"origin": pa.array(origin, pa.string())}
    path = scored(tmp_path / "test.parquet", rows, embedding, columns)
    run_evidence.supplied = Supplied(scores=path)
    found = check_realism(run_evidence, config)
    assert found.passed is passed
    assert (found.measured["real"], found.measured["injected"]) == (300, 300)
    assert "real ones of the dataset itself" in found.detail


def test_what_is_missing_is_said_with_its_remedy(run_evidence, judged, config, tmp_path):
    with pytest.raises(NotRunError, match=r"No real lenses .* infer --embeddings.* `--real`"):
        check_realism(run_evidence, config)
    path = tmp_path / "real.csv"
    path.write_text("logit\n1.0\n")
    run_evidence.supplied = Supplied(scores=scored(tmp_path / "t.parquet"), real=path)
    with pytest.raises(NotRunError, match=r"real.csv has no column embedding"):
        check_realism(run_evidence, config)
    with pytest.raises(NotRunError, match="16 features, injected ones 8"):
        judged(vectors(50, width=16))


def test_a_test_split_without_features_is_not_run(judged, tmp_path):
    with pytest.raises(NotRunError, match=r"test0.parquet has no column embedding.*--embeddings"):
        judged(vectors(50), scored(tmp_path / "test0.parquet", embedding=False))


def test_features_of_two_networks_are_not_compared(run_evidence, config, tmp_path):
    embedding = vectors(50)
    ours = scored(tmp_path / "test.parquet", tta=False)
    path = tmp_path / "real.parquet"
    schema = pa.schema({"logit": pa.float32(), "embedding": embedding.type})
    with table_writer(path, schema, {"tta": True}) as write:
        write(pa.table({"logit": pa.array([1.0] * 50, pa.float32()), "embedding": embedding}))
    run_evidence.supplied = Supplied(scores=ours, real=path)
    with pytest.raises(NotRunError, match="differ in tta"):
        check_realism(run_evidence, config)


def test_features_of_two_precisions_are_not_compared(run_evidence, config, tmp_path):
    embedding = vectors(50)
    sha256 = run_evidence.checkpoint_sha256
    ours = scored(tmp_path / "test.parquet", checkpoint_sha256=sha256)
    rounded = pa.table({"logit": pa.array([1.0] * 50, pa.float32()), "embedding": embedding})
    facts = {"checkpoint_sha256": sha256, "precision": "bf16"}
    with table_writer(tmp_path / "real.parquet", rounded.schema, facts) as write:
        write(rounded)
    run_evidence.supplied = Supplied(scores=ours, real=tmp_path / "real.parquet")
    with pytest.raises(NotRunError, match="differ in precision"):
        check_realism(run_evidence, config)


def test_features_that_are_not_finite_are_an_error(judged):
    broken = vectors(50).flatten().to_numpy(zero_copy_only=False).copy()
    broken[3] = np.nan
    with pytest.raises(ScoresError, match="not finite"):
        judged(pa.FixedSizeListArray.from_arrays(pa.array(broken, from_pandas=False), WIDTH))


def test_rows_are_bounded(judged):
    found = judged(vectors(MOST_ROWS + 1000))
    assert found.measured["real"] == MOST_ROWS


@pytest.mark.parametrize("suffix", ["parquet", "fits"])
def test_chosen_vectors_are_read_whatever_the_format(tmp_path, suffix):
    column = vectors(1000)
    path = tmp_path / f"t.{suffix}"
    schema = pa.schema({"logit": pa.float32(), "embedding": column.type})
    with table_writer(path, schema, {}) as write:
        for start in (0, 400):
            part = column[start : start + 600 if start else 400]
            write(pa.table({"logit": pa.array([0.0] * len(part), pa.float32()), "embedding": part}))
    rows = np.array([0, 399, 400, 999])
    expected = column.flatten().to_numpy().reshape(-1, WIDTH)[rows]
    np.testing.assert_array_equal(read_vectors(path, "embedding", rows), expected)
    assert read_vectors(path, "other", rows) is None
    with pytest.raises(ScoresError, match="has 1 of 2 rows"):
        read_vectors(path, "embedding", np.array([5, 1000]))


def test_what_infer_writes_is_what_the_gate_reads(finished, run_evidence, config, tmp_path):
    """Lenses of another split stand in for real ones: made alike, they pass."""
    run, dataset = finished
    for split in ("val", "test"):
        checkpoint = run / "checkpoints" / "best.pt"
        infer([checkpoint], dataset, split=split, out=tmp_path / f"{split}.parquet",
              embeddings=True, device="cpu")  # fmt: skip
    table = pq.read_table(tmp_path / "val.parquet")
    pq.write_table(
        table.filter(pa.array(table["label"].to_numpy() == 1)), tmp_path / "real.parquet"
    )
    run_evidence.supplied = Supplied(
        scores=tmp_path / "test.parquet", real=tmp_path / "real.parquet"
    )
    found = check_realism(run_evidence, config)
    assert (found.measured["real"], found.measured["injected"]) == (60, 60)
    assert found.measured["value"] < 0.8
