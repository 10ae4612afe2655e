"""Runs side by side: real tables of scores under reports, and what cannot be compared."""

import json

import pytest
from click.testing import CliRunner

from lensprep.configfile import to_toml
from lensprep.dataset.strictjson import plain
from lenstrain.cli import main
from lenstrain.config import Config, OptimConfig
from lenstrain.evaluation.measure import measure
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.evaluation.scores import read_scores
from lenstrain.pages.page import METRICS_NAME, REPORT_NAME
from tests.scoretables import BARE, make_table


@pytest.fixture
def write_run(tmp_path, write_scores):
    """Writes a run of two epochs and a report of its scores, where lenses have `gain` more."""

    def write(name, gain=0.0, seed=0, lr=1e-3):
        run = tmp_path / name
        run.mkdir()
        (run / "config.toml").write_text(to_toml(Config(optim=OptimConfig(lr=lr))))
        records = [{"kind": "epoch", "step": 9 * epoch, "epoch": epoch, "auroc": 0.8, "nll": None}
                   for epoch in (1, 2)]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        table = make_table(seed=seed)
        logits = table["logit"].to_numpy() + gain * table["label"].to_numpy()
        made_by = {"checkpoint": str(run / "checkpoints" / "best.pt")}
        scores = write_scores(f"{name}.parquet", made_by, seed=seed, logit=logits, **BARE)
        table = read_scores(scores)
        origin = {"scores": str(scores), "scores_sha256": table.sha256, "scores_metadata": made_by}
        options = EvaluationOptions(resamples=20, fprs=(0.1,))
        found = measure(table, None, options, lambda stage, done: None)
        (run / "report").mkdir(parents=True)
        content = plain(found.entries | {"provenance": origin})
        (run / "report" / METRICS_NAME).write_text(json.dumps(content))
        (run / "report" / REPORT_NAME).write_text("<h1>The report</h1>")
        return run

    return write


def compare(out, *places):
    command = ["compare", *map(str, places), "--out", str(out)]
    return CliRunner().invoke(main, [*command, "--set", "resamples=60", "--set", "fprs=[0.1]"])


def test_runs_are_compared_with_the_first(write_run, tmp_path):
    a, b, c = write_run("a"), write_run("b<i>", gain=2.0, lr=3e-3), write_run("c", seed=4)
    done = compare(tmp_path / "out", a, b, c)
    assert done.exit_code == 0, done.output
    assert "c is not compared: " in done.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    gain = found["differences"]["b<i>"]
    assert gain["auroc"]["low"] > 0
    assert gain["tpr_at_fpr"]["0.1"]["this"] > gain["tpr_at_fpr"]["0.1"]["other"]
    assert "differ in their keys" in found["differences"]["c"]["reason"]
    assert found["settings"] == {"optim.lr": [1e-3, 3e-3, 1e-3]}
    assert [len(records) for records in found["curves"].values()] == [2, 2, 2]
    auroc = found["headlines"][0]
    assert auroc["name"] == "AUROC"
    own = json.loads((a / "report" / METRICS_NAME).read_text())["auroc"]["value"]
    assert [float(each["value"]) for each in auroc["values"][::2]] == [
        pytest.approx(own, abs=6e-4), pytest.approx(own, abs=0.1)
    ]  # fmt: skip
    page = (tmp_path / "out" / "compare.html").read_text()
    assert 'href="../a/report/report.html"' in page
    assert "b&lt;i&gt;" in page
    assert "b<i>" not in page
    assert "<script" not in page
    assert page.count("<figure") == 2
    rates = (tmp_path / "out" / "figures" / "roc.csv").read_text()
    assert "b<i>" in rates
    assert "c," not in rates  # its stamps are others


def test_what_is_gone_or_has_changed_is_not_compared(write_run, tmp_path, write_scores):
    a, b, c = write_run("a"), write_run("b"), write_run("c")
    write_scores("b.parquet", rows=600)
    (c / "report" / METRICS_NAME).unlink()
    done = compare(tmp_path / "out", a, b / "report", c)
    assert done.exit_code == 0, done.output
    differences = json.loads((tmp_path / "out" / "compare.json").read_text())["differences"]
    assert "has changed since the report" in differences["b"]["reason"]
    assert "no folder report" in differences["c"]["reason"]
    (a / "report" / METRICS_NAME).unlink()
    assert compare(tmp_path / "none", a, c).exit_code == 0


def test_what_is_no_run_is_refused_in_a_line(write_run, tmp_path):
    done = compare(tmp_path / "out", write_run("a"), tmp_path / "nothing")
    assert done.exit_code == 1
    assert "neither a run nor a report" in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert compare(tmp_path / "out", tmp_path / "a").exit_code == 2
