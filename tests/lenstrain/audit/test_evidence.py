"""Reports of other versions, and damaged ones, are findings: they are the files' faults."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset import Dataset
from lensprep.errors import ScoresError, StorageError
from lenstrain.audit import run, scores
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.audit.finding import NotRunError
from lenstrain.scoretable import read_logits
from lenstrain.scoring.ledger import LEDGER, read_ledger

WHOLE = {"provenance": {"scores_metadata": {}}, "auroc": {}, "tpr_at_fpr": {},
         "completeness_thresholds": []}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", r"is no report of ours: It is \[\]"),
        ("{}", "has no provenance: another version wrote it"),
        (json.dumps(WHOLE | {"provenance": 3}), "provenance is 3"),
        (json.dumps(WHOLE | {"provenance": {"scores_metadata": None}}), "scores_metadata is None"),
        (json.dumps(WHOLE | {"completeness_thresholds": 5}), "completeness_thresholds is 5"),
    ],
)
def test_an_evaluation_that_is_none_is_told(finished, config, tmp_path, text, message):
    (tmp_path / "metrics.json").write_text(text)
    folder, dataset = finished
    named = Evidence(folder, Dataset.open(dataset), Supplied(evaluation=tmp_path))
    with pytest.raises(NotRunError, match=message):
        scores.check_region_bootstrap(named, config)
    assert not run.check_provenance(named, config).passed


def test_what_a_report_lacks_is_told_when_it_is_read(finished, config, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(WHOLE))
    folder, dataset = finished
    named = Evidence(folder, Dataset.open(dataset), Supplied(evaluation=tmp_path))
    with pytest.raises(NotRunError, match="has no n_regions: another version"):
        scores.check_region_bootstrap(named, config)


@pytest.mark.parametrize("content", ["[]", '{"probes": 3, "readings": {}}', '{"probes": {}}'])
def test_probes_that_are_none_are_told(finished, tmp_path, content):
    (tmp_path / "probe.json").write_text(content)
    folder, dataset = finished
    with pytest.raises(NotRunError, match=r"probe\.json"):
        Evidence(folder, Dataset.open(dataset), Supplied(probe=tmp_path)).probed("core_only")


def test_a_damaged_evaluation_nearby_hides_no_other_one(finished, tmp_path):
    found = Evidence(tmp_path / "run", Dataset.open(finished[1]))
    found.checkpoint_sha256 = "a"
    mine = {"provenance": {"scores_metadata": {"split": "test", "checkpoint_sha256": "a"}}}
    for name, text in (("a", json.dumps(WHOLE | mine)), ("b", "{}"), ("c", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
    assert found.evaluation_folder == tmp_path / "a"


@pytest.mark.parametrize("line", ["x", "3", "{}", '{"dataset_id": "a"', "\udcff"])
def test_a_damaged_ledger_is_told(tmp_path, line):
    (tmp_path / LEDGER).write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(StorageError, match="line 1 is damaged: how often the test split"):
        read_ledger(tmp_path)
    (tmp_path / LEDGER).write_bytes(b"\n")
    assert read_ledger(tmp_path) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": ["ring"]}, "lacks the column logit"),
        ({"logit": ["high"], "kind": ["ring"]}, "column logit holds string, not numbers"),
        ({"logit": [[1.0]], "kind": ["ring"]}, "column logit holds list.*, not plain values"),
        ({"logit": [None], "kind": ["ring"]}, "logits that are not finite"),
    ],
)
def test_a_table_without_logits_is_told(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ScoresError, match=message):
        read_logits(tmp_path / "t.parquet", ["kind"])
