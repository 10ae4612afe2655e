"""A sample scored again: what best.pt gave passes, changed logits and other pixels are found."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset import Dataset
from lensprep.tables.formats import METADATA_KEY
from lenstrain.audit import rescore
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError
from lenstrain.evaluation.scores import read_scores
from lenstrain.scoring.infer import infer


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tta"])
def scored(request, finished, tmp_path_factory):
    run, dataset = finished
    out = tmp_path_factory.mktemp("scored") / "val.parquet"
    infer(run / "checkpoints" / "best.pt", dataset, split="val", out=out, device="cpu",
          tta=request.param)  # fmt: skip
    return out


@pytest.fixture
def evidence(finished, scored, tmp_path):
    """Evidence with the table, changed."""

    def make(change=lambda logits: logits, **metadata):
        table = pq.read_table(scored)
        told = json.loads(table.schema.metadata[METADATA_KEY]) | metadata
        at = table.column_names.index("logit")
        logits = pa.array(change(table["logit"].to_numpy().copy()), pa.float32())
        table = table.set_column(at, "logit", logits)
        path = tmp_path / "changed.parquet"
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(told)}), path)
        found = Evidence(finished[0], Dataset.open(finished[1]))
        found.scores = read_scores(path)
        return found

    return make


def test_what_the_checkpoint_gives_passes(evidence, config):
    found = rescore.check_rescored(evidence(), config)
    assert found.passed, found.detail
    assert found.measured["rows"] == 120
    assert found.measured["largest_difference"] < 1e-4
    assert "2.5%" in found.detail


def raised(logits):
    logits[5] += 0.1
    return logits


@pytest.mark.parametrize("change", [raised, np.flip, lambda z: 1.01 * z + 0.01])
def test_changed_logits_are_found(evidence, config, change):
    found = rescore.check_rescored(evidence(change), config)
    assert not found.passed
    assert "scored again" in found.detail


def test_another_way_of_scoring_is_found(evidence, config):
    made = evidence()
    made.scores.metadata["tta"] = not made.scores.metadata["tta"]
    assert not rescore.check_rescored(made, config).passed


def test_lower_precision_is_given_its_rounding(evidence, config):
    def rounded(logits):
        return logits * (1 + 0.01 * (-1.0) ** np.arange(len(logits)))

    assert rescore.check_rescored(evidence(rounded, precision="bf16"), config).passed
    assert not rescore.check_rescored(evidence(rounded), config).passed


def test_means_of_several_checkpoints_are_not_run(evidence, config):
    with pytest.raises(NotRunError, match="2 checkpoints"):
        rescore.check_rescored(evidence(members=[{}, {}]), config)


def test_rows_of_another_dataset_are_not_run(evidence):
    with pytest.raises(NotRunError, match="is in the split"):
        rescore.sample_rows(evidence().scores, pa.chunked_array([["a"]]), 10, 0)
