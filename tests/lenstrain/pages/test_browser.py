"""The report in a real browser: it asks for nothing, fits a phone, and prints."""

import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest

from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.pages.evaluate import evaluate
from tests.families import RESOLVED, add_families
from tests.scoretables import make_table

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome")
     if (found := shutil.which(name))), None,
)  # fmt: skip
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed"),
]

AXES = (("theta_e_arcsec",), ("arc_snr",), ("theta_e_arcsec", "psfsize_r"))
"""A curve over the values of an axis, one over its bins, and a map."""

# A frame of the same origin has the width that it is given; a window has a least one.
PROBE = """<!doctype html><body style="margin:0"><iframe id="f" width="WIDTH" height="800"
 style="border:0" src="report.html"></iframe><pre id="out"></pre><script>
const frame = document.getElementById("f");
frame.addEventListener("load", () => setTimeout(() => {
  const page = frame.contentDocument, root = page.documentElement, wide = [];
  for (const e of page.body.querySelectorAll("*")) {
    const inside = e.closest(".scroll");
    const beyond = e.getBoundingClientRect().right > root.clientWidth + 1;
    if (!inside && beyond) wide.push(e.outerHTML.slice(0, 80));
  }
  const images = [...page.images];
  const loaded = frame.contentWindow.performance.getEntriesByType("resource").map(r => r.name);
  document.getElementById("out").textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, wide,
    images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    loaded: loaded.filter(name => !name.startsWith("data:")),
  });
}, 200));
</script></body>"""


def run(*arguments):
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-extensions",
        "--no-first-run", "--hide-scrollbars", "--disable-background-networking",
        "--disable-dev-shm-usage", "--virtual-time-budget=20000", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An evaluation with every section but stamps."""
    folder = tmp_path_factory.mktemp("browser")
    for name, seed in (("test", 1), ("val", 2)):
        table = add_families(make_table(seed=seed), RESOLVED)
        pq.write_table(table, folder / f"{name}.parquet")
    rows = "".join(f"Lens{i},{i},0,-,galaxy,confident,x\n" for i in range(30))
    (folder / "c.csv").write_text("name,RA,DEC,zlens,type,grading,ref\n" + rows)
    real = make_table(rows=60, seed=3, theta_e_arcsec=None, ra=[float(i) for i in range(60)])
    pq.write_table(real.append_column("dec", [[0.0] * 60]), folder / "real.parquet")
    evaluate(
        folder / "test.parquet",
        folder / "out",
        calibrate_on=folder / "val.parquet",
        compare_with=folder / "test.parquet",
        catalog=folder / "c.csv",
        catalog_scores=folder / "real.parquet",
        options=EvaluationOptions(resamples=60, completeness_axes=AXES),
    )
    return folder / "out"


@pytest.fixture(scope="module")
def served(folder):
    """The folder on a loopback server, and the paths that are asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def look(folder, served, width):
    """What the browser makes of the report in a frame of some width, and asks for."""
    address, asked = served
    asked.clear()
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    found = run("--dump-dom", f"{address}/probe.html")
    text = re.search(r'<pre id="out">(.*?)</pre>', found.stdout, re.DOTALL)
    assert text, found.stderr[-2000:]
    seen = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return seen | {"asked": set(asked)}


@pytest.fixture(scope="module", params=[390, 1280])
def looked(folder, served, request):
    """A width, and what is seen there of the report."""
    return request.param, look(folder, served, request.param)


def test_the_page_fits_and_every_figure_is_drawn(looked):
    width, seen = looked
    assert seen["width"] == width
    assert seen["scroll"] <= width, seen["wide"][:5]
    assert seen["wide"] == []
    assert seen["images"] >= 12
    assert seen["broken"] == 0
    assert seen["height"] > 3000


def test_the_page_asks_the_network_for_nothing(looked):
    _, seen = looked
    assert seen["loaded"] == []
    assert seen["asked"] <= {"/probe.html", "/report.html", "/favicon.ico"}


def test_the_probe_sees_what_it_looks_for(folder, served):
    """A page that is too wide and loads a picture is caught, if only its policy lets it."""
    report = folder / "report.html"
    good = report.read_text()
    bad = re.sub(r"<meta http-equiv[^>]*>", "", good).replace(
        "</header>", '<img src="x.png"><p style="max-width:none;width:900px">wide</p></header>', 1
    )
    try:
        report.write_text(bad)
        seen = look(folder, served, 390)
        assert seen["scroll"] > 390
        assert seen["broken"] == 1
        assert any(name.endswith("/x.png") for name in seen["loaded"])
        assert "/x.png" in seen["asked"]
        # The policy of the page itself keeps even such a page from asking.
        report.write_text(good.replace("</header>", '<img src="x.png"></header>', 1))
        assert "/x.png" not in look(folder, served, 390)["asked"]
    finally:
        report.write_text(good)


def test_the_page_prints(folder, tmp_path):
    pdf = tmp_path / "report.pdf"
    run(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", f"file://{folder}/report.html")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", content))
    assert 3 <= pages <= 20
