from lenstrain.publish.copied import copy_folders, mark_draft
from lenstrain.publish.digests import files_of

PAGE = """<!doctype html>
<html>
<body>
<a class="skip" href="#main">Skip</a>
<a href="../runs/a/audit/audit.html#seeds">Audit</a> <a href="figures/">Figures</a>
<a href="../../elsewhere/x.html">Gone</a> <a href="https://example.org/a">Out</a>
<a href="#roc">Here</a>
<a href="../runs/a/">Run</a> <a href="../runs/a/log.txt">Log</a>
</body></html>
"""


def make_pages(folder):
    report, audit = folder / "work" / "report", folder / "work" / "runs" / "a" / "audit"
    for page in (report, audit):
        page.mkdir(parents=True)
    (report / "figures").mkdir()
    (report / "figures" / "roc.csv").write_text("a,b\n")
    (report / "report.html").write_text(PAGE)
    (report / "model_card.md").write_text("# Card\n")
    (audit / "audit.html").write_text('<body>\n<a href="../../../report/report.html#roc">ROC</a>')
    return {"report": report, "audit": audit}


def test_links_between_copied_pages_lead_to_the_copies_and_others_become_text(tmp_path):
    out, run = tmp_path / "out", tmp_path / "work" / "runs" / "a"
    (out / "run").mkdir(parents=True)
    (out / "run" / "config.toml").touch()
    copy_folders(make_pages(tmp_path), out, {"run": run})
    text = (out / "report" / "report.html").read_text()
    assert '<a href="../audit/audit.html#seeds">Audit</a>' in text
    assert '<a href="figures">Figures</a>' in text
    assert '<a href="../run">Run</a> Log' in text
    assert "elsewhere" not in text
    assert "\nGone <a" in text
    for kept in ('<a href="https://example.org/a">Out</a>', '<a href="#roc">Here</a>',
                 '<a class="skip" href="#main">Skip</a>'):  # fmt: skip
        assert kept in text
    assert '<a href="../report/report.html#roc">ROC</a>' in (out / "audit/audit.html").read_text()
    assert (out / "report" / "figures" / "roc.csv").read_text() == "a,b\n"


def test_a_draft_says_so_on_every_page_and_escapes_why(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    copy_folders(make_pages(tmp_path), out, {})
    mark_draft(out, files_of(out), ["license: <none> is named."])
    for page in ("report/report.html", "audit/audit.html"):
        text = (out / page).read_text()
        assert "<body>\n<p role=" in text
        assert "DRAFT, not fit to be published." in text
        assert "license: &lt;none&gt; is named." in text
    assert (out / "report/model_card.md").read_text().startswith("> **DRAFT, not fit")
