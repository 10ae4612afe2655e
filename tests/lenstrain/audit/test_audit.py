"""`lenstrain audit` as a whole: verdict, files, exit status, refusals, and what docs say of it."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.checks.finding import Finding
from lensprep.configfile import load_config
from lensprep.store import open_store, read_file, send_file
from lensprep.tables.formats import METADATA_KEY
from lensprep.transfer import upload
from lenstrain.audit import config as thresholds
from lenstrain.audit.audit import audit
from lenstrain.audit.checklist import CHECKLIST
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.report import lines, mark, markdown, page, pressing, steps
from lenstrain.cli import main
from lenstrain.pages.links import links_to

DOCS = Path(__file__).parents[3] / "docs" / "how-to" / "audit.md"
SCIENCE = [
    "schema",
    "reject_rate",
    "label_consistency",
    "both_classes",
    "split_disjoint",
    "duplicates",
    "split_fractions",
    "pairing",
    "forbidden_inputs",
    "metadata_probe",
    "norm_stat_probe",
    "permuted_labels",
    "overfit_64",
    "loader_coverage",
    "resume",
    "ddp_eval",
    "full_eval",
    "score_resolution",
    "roc_sanity",
    "fpr_support",
    "region_bootstrap",
    "seeds",
    "calibration",
    "completeness_cells",
    "unresolved_share",
    "null_injection",
    "flux_matched_null",
    "arc_removal",
    "core_mask",
    "annulus_only",
    "core_only",
    "ring_probe",
    "psf_depth",
    "brightness_only",
    "leave_one_out",
    "confusers",
    "blank",
    "artefacts",
    "real_lenses",
    "realism",
    "attribution",
    "provenance",
    "test_once",
]
BEYOND = [
    "baseline",
    "counterfactuals",
    "pairs",
    "near_duplicates",
    "normalization",
    "sky_probe",
    "rescored",
    "report_figures",
    "label_noise",
]
"""Items that the reference does not name."""
ITEMS = [*SCIENCE, *BEYOND]
ITEMS_BY_NAME = {item.name: item for item in CHECKLIST}


@pytest.fixture(scope="module")
def audited(finished, tmp_path_factory):
    run, dataset = finished
    out = tmp_path_factory.mktemp("out") / "audit"
    arguments = ["audit", str(run), str(dataset), "--out", str(out), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--set", "resamples=100"])
    return result, out


def test_the_checklist_is_the_references():
    assert sorted(item.name for item in CHECKLIST) == sorted(ITEMS)
    assert len({item.name for item in CHECKLIST}) == len(CHECKLIST)


def test_a_fresh_run_is_no_go_and_says_why(audited):
    result, _ = audited
    assert result.exit_code == 4
    content = json.loads(result.stdout)
    assert content["verdict"] == "NO-GO"
    findings = {finding["item"]: finding for finding in content["findings"]}
    assert set(findings) == set(ITEMS)
    sound = ("schema", "label_consistency", "both_classes", "split_disjoint", "duplicates",
             "near_duplicates", "forbidden_inputs", "loader_coverage",
             "unresolved_share")  # fmt: skip
    for name in sound:
        assert findings[name]["passed"] is True, findings[name]
    assert findings["full_eval"]["passed"] is None
    assert "lenstrain infer" in findings["full_eval"]["detail"]
    assert findings["provenance"]["passed"] is False
    keys = {"item", "group", "severity", "passed", "measured", "threshold", "detail"}
    assert all(set(finding) - {"rule", "remedy"} == keys for finding in findings.values())


def test_page_markdown_and_json_hold_every_item(audited):
    result, out = audited
    written = json.loads((out / "audit.json").read_text())
    assert written["findings"] == json.loads(result.stdout)["findings"]
    html, text = (out / "audit.html").read_text(), (out / "audit.md").read_text()
    for name in ITEMS:
        assert f'id="item-{name}"' in html
        assert f"| `{name}` |" in text
    assert "://" not in html
    assert text.startswith("# Audit: NO-GO")


def test_a_run_in_a_store_is_audited_as_one_on_a_disk(audited, finished, s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.server.http)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run, dataset = finished
    digest = hashlib.sha256((run / "checkpoints/best.pt").read_bytes()).hexdigest()
    metadata = {METADATA_KEY: json.dumps({"split": "test", "checkpoint_sha256": digest})}
    stray = pa.table({"logit": [0.0]}).replace_schema_metadata(metadata)
    pq.write_table(stray, tmp_path / "stray.parquet")  # beside the copy, but not beside the run
    uri = f"{s3.uri}/run"
    for path in run.rglob("*"):
        if path.is_file():
            send_file(open_store(uri), path, path.relative_to(run).as_posix())
    arguments = ["audit", uri, str(dataset), "--json", "--set", "resamples=100"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 4, result.output
    found, expected = json.loads(result.stdout), json.loads(audited[0].stdout)
    text = json.dumps(expected["findings"]).replace(str(run), uri).replace(" or next to it", "")
    assert found["findings"] == json.loads(text)
    assert found["report"] == f"{uri}/audit/audit.html"
    assert json.loads(read_file(f"{uri}/audit/audit.json"))["run"] == uri
    assert found["checkpoint"] == f"{uri}/checkpoints/best.pt"
    assert found["digests"] == expected["digests"]
    assert found["digests"]["checkpoint"] == digest


def finding(**changes):
    values = {
        "item": "schema",
        "group": "data",
        "severity": "blocker",
        "passed": False,
        "measured": {"a": 1.23456, "b": [True, None]},
        "threshold": 0,
        "detail": "x",
    }
    return Finding(**values | changes)  # fmt: skip


CONTENT = {
    "verdict": "NO-GO",
    "purpose": "publish",
    "run": "r",
    "dataset": "d",
    "dataset_id": "0" * 64,
    "digests": {"scores": "ab" * 32, "checkpoint": None},
    "checkpoint": None,
    "created": "now",
    "version": "1",
    "config": {},
    "pages": {"report": "r/report.html", "probe": "r/probe.html"},
}


def test_the_digests_are_shown():
    shown = page(CONTENT, [finding()])
    assert "SHA-256 of scores" in shown
    assert "ab" * 32 in shown
    assert "SHA-256 of checkpoint" not in shown


def test_text_from_outside_is_escaped():
    made = page(CONTENT, [finding(detail="<script>alert(1)</script>")])
    assert "<script>" not in made
    assert "&lt;script&gt;" in made
    assert "a\\|b" in markdown(CONTENT, [finding(detail="a|b")])


def test_the_gravest_come_first_and_what_passed_does_not():
    order = [("warn", False), ("blocker", None), ("blocker", True), ("blocker", False),
             ("info", False), ("warn", None)]  # fmt: skip
    found = pressing([finding(severity=s, passed=p) for s, p in order])
    assert [(f.severity, f.passed) for f in found] == [
        ("blocker", False), ("blocker", None), ("warn", False)
    ]  # fmt: skip


def test_what_was_measured_but_not_judged_is_not_called_not_run():
    found = finding(passed=None), finding(passed=None, measured=None)
    assert [mark(f) for f in found] == ["not judged", "not run"]


def test_what_lacks_for_one_reason_is_one_step():
    probes = [finding(item=item, passed=None, detail="Not probed.")
              for item in ("core_mask", "null_injection")]  # fmt: skip
    failed = [finding(item=item, detail="Broken.", remedy="Mend it.")
              for item in ("schema", "duplicates")]  # fmt: skip
    found = steps([*probes, *failed])
    assert [[f.item for f in step] for step in found] == [
        ["schema"], ["duplicates"], ["core_mask", "null_injection"]
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80])
def test_lines_fit_the_terminal_and_end_with_the_verdict(audited, monkeypatch, columns):
    content = json.loads(audited[0].stdout)
    monkeypatch.setenv("COLUMNS", str(columns))
    found = [Finding(**f) for f in content["findings"]]
    command = f"`lenstrain probe {'a/' * columns} b`"
    shown = lines(content, [*found, finding(detail=f"Run {command} once.", remedy="Mend it.")])
    # A command or a path is never broken.
    assert f"  {command}" in shown
    assert "  Mend it." in shown
    long = [line for line in shown if len(line) > columns]
    assert [line for line in long if not re.fullmatch(r" *(`[^`]+`|\S+)[.,:;]?", line)] == []
    text = " ".join(" ".join(shown).split())
    assert "not run, blocker: full_eval" in text
    blockers = 1 + sum(f.severity == "blocker" for f in found)
    verdict = f"Verdict: NO-GO. Of {blockers} blockers"
    assert text.rindex(verdict) > text.rindex("changing the verdict:")


def test_a_failed_item_says_what_to_do_with_what_was_audited(finished, tmp_path):
    run, dataset = finished
    changed = load_config(AuditConfig, None, ["data.min_separation_arcsec=1e6"])
    content, findings = audit(run, dataset, tmp_path, config=changed, only=["split_disjoint"])
    found = next(f for f in findings if f.item == "split_disjoint")
    assert found.passed is False
    assert found.remedy == ITEMS_BY_NAME["split_disjoint"].remedy
    assert found.remedy in (tmp_path / "audit.html").read_text()
    assert found.remedy in (tmp_path / "audit.md").read_text()
    told = [f["remedy"] for f in content["findings"] if f.get("remedy")]
    assert told == [found.remedy]


def test_every_item_says_what_passes_why_and_what_to_do():
    """With thresholds of another audit, in words; and the section that says more is there."""
    config = load_config(AuditConfig, None, ["data.max_reject_rate=0.0005"])
    assert "at most 0.05% of the rows" in ITEMS_BY_NAME["reject_rate"].filled(
        ITEMS_BY_NAME["reject_rate"].rule, config
    )
    sections = re.findall(r"^##+ (.*)$", DOCS.read_text(), re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in sections}
    for item in CHECKLIST:
        texts = [item.filled(text, config) for text in (item.title, item.measures, item.rule)]
        assert not re.search(r"[{}\[]", "".join(texts)), item.name
        assert item.why.endswith(".")
        assert item.remedy.endswith(".") or not item.rule, item.name
        assert not item.docs or item.docs in anchors, item.name


def test_findings_link_to_the_figures_that_there_are(tmp_path):
    for name, part in (("report", "roc_log"), ("probe", "elsewhere")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.html").write_text(f'<figure id="{part}">')
    pages = {name: tmp_path / name / f"{name}.html" for name in ("report", "probe")}
    links = links_to(pages | {"lost": tmp_path / "lost.html"}, tmp_path / "a b")
    assert links == {
        "report": "../report/report.html",
        "report#roc_log": "../report/report.html#roc_log",
        "probe": "../probe/probe.html",
        "probe#elsewhere": "../probe/probe.html#elsewhere",
    }
    found = page(CONTENT, [finding(item="fpr_support"), finding(item="core_mask")], links)
    assert found.count("See the report") == 2  # under the item, and in what stands in the way
    assert '<a href="../report/report.html#roc_log">See the report</a>' in found
    assert links_to(pages, "s3://bucket/audit") == {}


def test_only_measures_what_is_named(finished, tmp_path):
    content, findings = audit(*finished, tmp_path / "out", only=["duplicates"])
    assert content["verdict"] == "NO-GO"
    measured = [f.item for f in findings if f.passed is not None]
    assert measured == ["duplicates"]


def test_internal_use_asks_less(finished, tmp_path):
    content, findings = audit(
        *finished, tmp_path / "out", only=["blank"], config=AuditConfig(purpose="internal")
    )
    severities = {f.item: f.severity for f in findings}
    assert severities["blank"] == "warn"
    assert content["purpose"] == "internal"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "schemas"], "no item 'schemas'"),
        (["--set", "data.max_rejects=1"], "Did you mean 'data.max_reject_rate'"),
        (["--scores", "nowhere.parquet"], "no such file"),
        (["--left-out", "theta"], "COLUMN=VALUE:SCORES"),
    ],
)
def test_refusals_in_one_line(finished, arguments, said):
    run, dataset = finished
    result = CliRunner().invoke(main, ["audit", str(run), str(dataset), *arguments])
    assert result.exit_code == 1
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_folder_that_is_no_run_is_refused(finished, tmp_path):
    result = CliRunner().invoke(main, ["audit", str(tmp_path), str(finished[1])])
    assert result.exit_code == 1
    assert "not the folder of a run" in result.output


def test_scores_of_another_checkpoint_do_not_count(finished, tmp_path):
    from lenstrain.scoring.infer import infer

    run, dataset = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    checkpoint = copy / "checkpoints" / "best.pt"
    infer(checkpoint, dataset, split="test", out=copy / "test.parquet", device="cpu")
    content, _ = audit(copy, dataset, only=["full_eval", "test_once"])
    found = {f["item"]: f["passed"] for f in content["findings"]}
    assert (found["full_eval"], found["test_once"]) == (True, True)
    (copy / "checkpoints" / "last.pt").unlink()
    shutil.copy(run / "checkpoints" / "best.pt", copy / "other.pt")
    with checkpoint.open("ab") as file:
        file.write(b"changed")
    content, _ = audit(copy, dataset, only=["full_eval"])
    found = {f["item"]: f for f in content["findings"]}
    assert found["full_eval"]["passed"] is None


def test_every_item_and_threshold_is_documented():
    text = DOCS.read_text()
    assert f"{len(CHECKLIST)} items" in text
    for name in ITEMS:
        assert f"`{name}`" in text, name
    for section in ("DataThresholds", "RunThresholds", "ScoreThresholds", "ScienceThresholds"):
        for field in getattr(thresholds, section).__dataclass_fields__:
            assert f"`{field}`" in text, field


def test_a_dataset_in_an_object_store_is_judged_like_its_local_copy(
    finished, tmp_path, s3, monkeypatch
):
    run, dataset = finished
    upload(dataset, s3.uri, s3.options())
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    config = load_config(AuditConfig, None, ["data.pairing=unpaired", "data.train_fraction=0.3333",
                                             "resamples=100"])  # fmt: skip
    here, there = (
        audit(run, where, tmp_path / name, config=config)[1]
        for name, where in (("here", dataset), ("there", s3.uri))
    )
    text = json.dumps([f.to_dict() for f in there]).replace(s3.uri, str(dataset))
    assert json.loads(text) == [f.to_dict() for f in here]
    data = {f.item: f.passed for f in there if f.group == "data"}
    unknown = {"reject_rate", "norm_stat_probe"}  # no account, and nothing was injected
    assert {item for item, passed in data.items() if passed is None} == unknown
    assert next(f.passed for f in there if f.item == "loader_coverage")
