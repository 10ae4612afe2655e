"""The whole folder: written, checked, refused, altered."""

import json
import re
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scipy import special

from lensprep.dataset import Dataset
from lensprep.dataset.normalization import normalization_spec
from lensprep.dataset.writer import write_dataset
from lensprep.errors import CheckpointError, ConfigError, ScoresError, StorageError
from lensprep.inspection.verify import verify
from lensprep.store import open_store
from lenstrain.audit.evidence import Evidence, Supplied
from lenstrain.cli import main
from lenstrain.publish.digests import SUMS, files_of, write_sums
from lenstrain.publish.facts import About
from lenstrain.publish.fit import find_faults
from lenstrain.publish.publish import NotFitError, publish
from lenstrain.publish.verify import OtherScoresError, check_publication
from tests.lenstrain.audit.conftest import make_table
from tests.lenstrain.geometries import VIS
from tests.lenstrain.publish.conftest import ABOUT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def copied(published, tmp_path):
    """A publication that a test may change."""
    return shutil.copytree(published, tmp_path / "copy")


@pytest.fixture
def there(fit_run, monkeypatch, committed):
    """In the folder with dataset, run, scores and report."""
    monkeypatch.chdir(fit_run)
    return fit_run


@pytest.fixture
def ready_weights(published, monkeypatch):
    """Weights are not made again, which takes half a minute, but are those of the publication."""

    def copy(checkpoint, folder, **options):
        shutil.copytree(published / "weights", folder, dirs_exist_ok=True)
        made = json.loads((published / "publication.json").read_text())["weights"]
        return {"flux": "restored", "files": made}

    monkeypatch.setattr("lenstrain.publish.publish.export_all", copy)


def lenstrain(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def test_the_folder_holds_what_the_page_of_publishing_promises(published):
    names = files_of(published)
    expected = {
        "README.md", "index.html", "model_card.md", "dataset_card.md", "croissant.json", SUMS,
        "ro-crate-metadata.json", "LICENSE", "CITATION.cff", "publication.json",
        "weights/finder.onnx", "weights/finder.safetensors", "weights/finder.pt2",
        "scores/test.parquet", "scores/val.parquet", "scores/catalogue.fits",
        "scores/catalogue.vot",
        "scores/sample.parquet", "report/report.html", "report/metrics.json", "run/config.toml",
        "run/environment.json", "run/metrics.jsonl", "run/test_ledger.jsonl",
        "dataset/manifest.json", "sample/manifest.json", "sample/test/test-000000.tar",
        *(f"completeness/completeness.{kind}" for kind in ("parquet", "csv", "fits", "vot")),
    }  # fmt: skip
    assert expected <= {*names}


def test_a_publication_passes_its_check_and_another_place_does_not_matter(copied):
    found = check_publication(copied)
    assert found["files"] == len(files_of(copied)) - 1
    assert found["rows"] == 180
    assert found["faults"] == []
    assert set(found["largest_difference"]) == {
        "scores", "weights/finder.safetensors", "weights/finder.onnx", "weights/finder.pt2"
    }  # fmt: skip
    assert max(found["largest_difference"].values()) < 1e-3


def test_one_altered_byte_in_any_file_is_found(copied):
    rng = np.random.default_rng(0)
    for name in files_of(copied):
        path = copied / name
        content = bytearray(path.read_bytes())
        position = int(rng.integers(len(content)))
        content[position] ^= 1
        path.write_bytes(content)
        result = lenstrain("publish", "--check", "--out", copied)
        assert result.exit_code == 1, name
        assert "is not as it was published" in result.stderr, name
        assert len(result.stderr.strip().splitlines()) == 1
        content[position] ^= 1
        path.write_bytes(content)


def test_a_folder_that_was_altered_with_its_digests_is_not_the_one_that_was_quoted(copied):
    quoted = check_publication(copied)["sums_sha256"]
    assert check_publication(copied, quoted)["sums_sha256"] == quoted
    (copied / "README.md").write_text("Another")
    (copied / SUMS).unlink()
    write_sums(copied)
    check_publication(copied)
    result = lenstrain("publish", "--check", "--out", copied, "--digest", quoted)
    assert result.exit_code == 1
    assert "is another publication than the one that was quoted" in result.stderr


def test_altered_scores_are_found_though_the_digests_were_made_again(copied):
    path = copied / "scores" / "test.parquet"
    table = pq.read_table(path)
    logit = table["logit"].to_numpy().copy()
    logit[:20] += 0.1
    column = table.column_names.index("logit")
    pq.write_table(table.set_column(column, "logit", [logit]), path)
    (copied / SUMS).unlink()
    write_sums(copied)
    with pytest.raises(OtherScoresError, match="20 of 180"):
        check_publication(copied)


def test_the_sample_is_a_dataset_with_the_records_of_the_original(published, fit_run):
    sample, dataset = Dataset.open(published / "sample"), Dataset.open(fit_run / "ds")
    keys = dataset.read_sidecar("test", ["key"])["key"].to_pylist()
    (shard,) = sample.split("test").shards
    rows = [keys.index(key) for key in sample.read_sidecar("test", ["key"])["key"].to_pylist()]
    records = np.concatenate(
        [dataset.read_records(shard) for shard in dataset.split("test").shards]
    )
    np.testing.assert_array_equal(sample.read_records(shard), records[rows])
    assert verify(published / "sample")["ok"]


def test_scores_and_checkpoint_are_bound_by_their_digests(published):
    facts = json.loads((published / "publication.json").read_text())
    metrics = json.loads((published / "report" / "metrics.json").read_text())
    ledger = json.loads((published / "run" / "test_ledger.jsonl").read_text().splitlines()[0])
    assert facts["checkpoint_sha256"] == ledger["checkpoint_sha256"]
    sums = dict(line.split("  ")[::-1] for line in (published / SUMS).read_text().splitlines())
    assert sums["scores/test.parquet"] == metrics["provenance"]["scores_sha256"]
    assert sums["scores/val.parquet"] == metrics["provenance"]["calibrate_on_sha256"]


def test_every_link_of_every_page_leads_to_a_file_of_the_folder(published):
    found = 0
    for name in files_of(published):
        if name.endswith(".html"):
            page = published / name
            for link in re.findall(r'href="(?!#|https?:)([^"#]*)', page.read_text()):
                assert (page.parent / unquote(link)).exists(), (name, link)
                found += 1
    assert found > 20
    assert "../model_card.md" in (published / "report" / "report.html").read_text()


def test_what_is_nobodys_business_and_blanks_are_left_out(published):
    environment = json.loads((published / "run" / "environment.json").read_text())
    assert environment["versions"]
    assert not {"host", "process"} & {*environment}
    assert not (published / "report" / "model_card.md").exists()
    assert "yours to complete" not in (published / "model_card.md").read_text()


def test_every_page_says_what_the_authors_say(published):
    front = (published / "index.html").read_text()
    assert "<h1>A finder for tests</h1>" in front
    assert '<a href="https://orcid.org/0000-0002-1825-0097">Ada Lovelace</a>' in front
    assert "CC-BY-4.0" in (published / "LICENSE").read_text()
    assert "lenses@example.org" in (published / "model_card.md").read_text()
    assert "DRAFT" not in front
    assert "nanomaggies per pixel (AB zero point 22.5)" in front
    assert "No real lens was scored" in front
    cff = (published / "CITATION.cff").read_text()
    assert '"family-names": "Lovelace"' in cff


def test_the_catalogues_have_positions_and_calibrated_probabilities(published):
    from astropy.table import Table

    metrics = json.loads((published / "report" / "metrics.json").read_text())
    scores = pq.read_table(published / "scores" / "test.parquet")
    mapped = metrics["calibration"]
    logit = scores["logit"].to_numpy().astype(np.float64)
    expected = special.expit(mapped["slope"] * logit + mapped["offset"])
    for kind in ("fits", "vot"):
        options = {"hdu": 1} if kind == "fits" else {}
        table = Table.read(published / "scores" / f"catalogue.{kind}", **options)
        np.testing.assert_allclose(table["probability"], expected, rtol=1e-6)
        np.testing.assert_array_equal(table["ra"], scores["ra"].to_numpy())
        assert str(table["ra"].unit) == "deg"


def test_run_report_and_folder_may_lie_in_a_store(there, ready_weights, s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.server.http)
    for name in ("run", "report"):
        for file in files_of(there / name):
            open_store(f"{s3.uri}/{name}").write(file, (there / name / file).read_bytes())
    out = f"{s3.uri}/out"
    made = publish(f"{s3.uri}/run", "ds", f"{s3.uri}/report", out, about=ABOUT)
    found = check_publication(out)
    assert found["sums_sha256"] == made["sums_sha256"]
    store = open_store(out)
    store.write("README.md", bytes(store.read("README.md")) + b" ")
    with pytest.raises(StorageError, match=f"{out} is not as it was published; altered: README.md"):
        check_publication(out)


# ------------------------------------------------------------------------------- refusals


def test_without_a_licence_it_is_a_draft_and_says_so_on_every_page(there, ready_weights, tmp_path):
    about, out = replace(ABOUT, license=""), tmp_path / "out"
    with pytest.raises(NotFitError, match="license: none is named") as error:
        publish("run", "ds", "report", out, about=about)
    assert "\n" not in str(error.value)
    assert not out.exists()

    facts = publish("run", "ds", "report", out, about=about, draft=True)
    (fault,) = facts["faults"]
    pages = [name for name in files_of(out) if name.endswith((".html", ".md"))]
    assert {"index.html", "README.md", "model_card.md", "report/report.html"} <= {*pages}
    for name in pages:
        text = (out / name).read_text()
        assert "DRAFT, not fit to be published." in text, name
        assert fault in text, name
    assert json.loads((out / "croissant.json").read_text())["creativeWorkStatus"] == "Draft"
    assert '"creativeWorkStatus": "Draft"' in (out / "ro-crate-metadata.json").read_text()
    assert check_publication(out)["faults"] == [fault]
    rows = re.findall(r"^\| `(.+?)` \| [\d,]+ \| `(\w+)…`", (out / "README.md").read_text(), re.M)
    sums = dict(line.split("  ")[::-1] for line in (out / SUMS).read_text().splitlines())
    assert len(rows) > 20
    assert [sums[name][:12] for name, _ in rows] == [digest for _, digest in rows]


def test_a_test_split_opened_twice_is_refused(there, tmp_path):
    run = shutil.copytree(there / "run", tmp_path / "run")
    ledger = run / "test_ledger.jsonl"
    line = json.loads(ledger.read_text().splitlines()[0])
    other = line | {"tta": True}
    ledger.write_text(ledger.read_text() + json.dumps(other) + "\n")
    with pytest.raises(NotFitError, match=r"test_once: .*2 different ways"):
        publish(run, "ds", "report", tmp_path / "out", about=ABOUT)


def test_code_that_was_changed_when_it_is_published_is_refused(there, tmp_path, monkeypatch):
    monkeypatch.setattr("lenstrain.publish.fit.git_commit", lambda: "0123+")
    with pytest.raises(NotFitError, match="code: it was changed after its commit"):
        publish("run", "ds", "report", tmp_path / "out", about=ABOUT)


def test_code_that_was_changed_when_it_trained_is_a_fault(there):
    evidence = Evidence(there / "run", Dataset.open("ds"), Supplied(evaluation="report"))
    assert find_faults(evidence, ABOUT) == []
    evidence.checkpoint["git_commit"] = "0123+"
    (fault,) = find_faults(evidence, ABOUT)
    assert fault.startswith("provenance: The code was changed after its commit")


def test_a_report_whose_figures_are_not_those_of_its_scores_is_refused(there, tmp_path):
    report = shutil.copytree(there / "report", tmp_path / "report")
    path = report / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["auroc"]["value"] += 0.001
    path.write_text(json.dumps(metrics))
    with pytest.raises(NotFitError, match=r"report_figures: .*auroc\.value"):
        publish("run", "ds", report, tmp_path / "out", about=ABOUT)


def test_unknown_licences_and_unreadable_authors_are_refused_in_a_draft_too(there, tmp_path):
    for about, match in (
        (About(license="CC BY 4"), "license: 'CC BY 4' is no identifier of SPDX"),
        (About(authors=("Ada <orcid>",)), "Ada"),
    ):
        with pytest.raises(ConfigError, match=match):
            publish("run", "ds", "report", tmp_path / "out", about=about, draft=True)


def test_scores_that_were_moved_are_found_by_their_digest_or_named(there, tmp_path):
    with pytest.raises(ScoresError, match="Name it with --scores"):
        publish("run", "ds", "report", tmp_path / "out", about=ABOUT, scores="val.parquet")


def test_a_dataset_of_other_stamps_is_refused(there, tmp_path):
    rows = make_table("test", rows=4)
    pixels = np.zeros((4, *VIS.shape), np.float16)
    spec = normalization_spec(geometry=VIS)
    write_dataset(tmp_path / "vis", {"test": (pixels, rows)}, spec, shard_rows=4, geometry=VIS)
    with pytest.raises(CheckpointError, match="vis"):
        publish("run", tmp_path / "vis", "report", tmp_path / "out", about=ABOUT, draft=True)


def test_what_is_no_publication_is_refused_in_one_line(there, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in (
        ("--check", "--out", tmp_path / "empty"),
        ("--check", "--out", tmp_path / "missing"),
        ("run", "ds", "ds", "--out", tmp_path / "x"),
        ("ds", "ds", "report", "--out", tmp_path / "x"),
    ):
        result = lenstrain("publish", *arguments)
        assert result.exit_code == 1, arguments
        assert len(result.stderr.strip().splitlines()) == 1


def test_the_command_says_what_it_wrote_and_found(published):
    found = json.loads((published.parent / "said.json").read_text())
    assert found["check"]["sums_sha256"] == found["sums_sha256"]
    assert found["files"] == len(files_of(published)) == found["check"]["files"] + 1
    result = lenstrain("publish", "--check", "--out", published)
    assert result.exit_code == 0
    assert f"{found['sums_sha256']}); 180 stamps scored again" in result.stdout


def test_arguments_that_do_not_go_together_are_usage_errors(tmp_path):
    for arguments in (("run",), ("run", "ds", "--check"), (), ("a", "b", "c", "--digest", "d")):
        result = lenstrain("publish", *arguments, "--out", tmp_path)
        assert result.exit_code == 2
