"""The report in a real browser: it fits, is named and legible in both modes, and asks for nothing.

The browser starts three times: light, dark, and to print.
"""

import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from lensprep.dataset import NormalizationSpec
from lensprep.dataset.writer import write_dataset
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
WIDTHS = (390, 500, 1000, 1600)
MODES = ("light", "dark")

# A frame of the same origin has the width that it is given; a window has a least one.
PROBE = """<!doctype html><body style="margin:0"><pre id="out"></pre><script>
function luminance(text) {
  const part = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * part[0] + .7152 * part[1] + .0722 * part[2];
}
function contrast(view, e) {
  let back = e;
  const style = e => view.getComputedStyle(e);
  while (back && /, 0\\)|transparent/.test(style(back).backgroundColor)) back = back.parentElement;
  const both = [style(e).color, style(back || view.document.body).backgroundColor]
    .map(luminance).sort((a, b) => b - a);
  return (both[0] + .05) / (both[1] + .05);
}
function name(e) {
  return (e.getAttribute("aria-label") || e.getAttribute("alt") || e.textContent || "").trim();
}
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const all = selector => [...page.querySelectorAll(selector)];
  const wide = all("body *").filter(e => !e.closest(".scroll") && !e.closest("[popover]")
    && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  const tabs = all("a[href], button, [tabindex='0'], input, select, summary")
    .filter(e => !e.closest("[popover]"));
  const texts = "body, p, .sub, a, td, th, figcaption, dt, .tile *, .notes li, .notes b, caption";
  const faint = all(texts).filter(
    e => !e.closest("[popover]") && e.textContent.trim() && contrast(view, e) < 4.5);
  const opener = page.querySelector("button[popovertarget]");
  let opened = null;
  if (opener) {
    opener.click();
    const shown = page.getElementById(opener.getAttribute("popovertarget"));
    opened = {open: shown.matches(":popover-open"), kind: shown.popover,
      wide: shown.querySelector("img").getBoundingClientRect().width, text: shown.textContent,
      low: contrast(view, shown)};
    shown.querySelector("button").click();
    opened.closed = !shown.matches(":popover-open");
  }
  const text = page.querySelector("main p").getBoundingClientRect();
  const nav = page.querySelector("nav").getBoundingClientRect();
  const ids = all("[id]").map(e => e.id);
  tabs[0].focus();
  const skip = tabs[0].getBoundingClientRect();
  const images = [...page.images];
  return {
    width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight, wide, opened,
    images: images.length,
    broken: images.filter(i => !i.closest("[popover]") && (!i.complete || !i.naturalWidth)).length,
    nameless: all("img, table, a, button, nav, [role]")
      .filter(e => !name(e) && !e.querySelector("caption")).map(e => e.outerHTML.slice(0, 80)),
    captions: all("table").length - all("table > caption").length,
    scopes: all("th").filter(e => e.scope !== (e.closest("thead") ? "col" : "row")).length,
    regions: all(".scroll")
      .filter(e => e.tabIndex !== 0 || e.getAttribute("role") !== "region").length,
    mains: all("main").length, headings: all("h1, h2, h3, h4").map(e => +e.tagName[1]),
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    lost: all("a[href^='#']")
      .filter(e => !page.getElementById(e.getAttribute("href").slice(1))).length,
    first: tabs[0].getAttribute("href"), skip: [skip.left >= 0, skip.width > 0],
    order: tabs.every((e, i) => !i || tabs[i - 1].compareDocumentPosition(e) & 4),
    positive: all("[tabindex]").filter(e => e.tabIndex > 0).length,
    paper: luminance(view.getComputedStyle(page.body).backgroundColor),
    faint: faint.map(e => e.outerHTML.slice(0, 80)), beside: nav.right <= text.left,
    dark: [...page.styleSheets].flatMap(s => [...s.cssRules]).filter(r => r.media)
      .map(r => r.media.mediaText).filter(t => t.includes("dark")),
    loaded: view.performance.getEntriesByType("resource").map(r => r.name)
      .filter(n => !n.startsWith("data:")),
  };
}
const frames = FRAMES.map(([source, width]) => {
  const frame = document.createElement("iframe");
  Object.assign(frame, {width, height: 800, src: source, style: "border:0"});
  return document.body.appendChild(frame);
});
addEventListener("load", () => setTimeout(() => {
  document.getElementById("out").textContent = JSON.stringify(frames.map(look));
}, 300));
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
    """An evaluation with every section; its stamps are known lenses that were missed."""
    folder = tmp_path_factory.mktemp("browser")
    for name, seed in (("test", 1), ("val", 2)):
        table = add_families(make_table(seed=seed), RESOLVED)
        pq.write_table(table, folder / f"{name}.parquet")
    rows = "".join(f"Lens{i},{i},0,-,galaxy,confident,x\n" for i in range(30))
    (folder / "c.csv").write_text("name,RA,DEC,zlens,type,grading,ref\n" + rows)
    real = make_table(rows=60, seed=3, theta_e_arcsec=None, ra=[float(i) for i in range(60)])
    real = real.append_column("dec", [[0.0] * 60])
    pixels = np.random.default_rng(0).normal(size=(60, 3, 64, 64)).astype(np.float16)
    spec = NormalizationSpec(mode="mad_stamp", clip=10.0)
    made = write_dataset(folder / "ds", {"test": (pixels, real)}, spec, shard_rows=60)
    facts = {"dataset": str(folder / "ds"), "dataset_id": made.dataset_id}
    pq.write_table(
        real.replace_schema_metadata({"lenstrain": json.dumps(facts)}), folder / "real.parquet"
    )
    evaluate(
        folder / "test.parquet",
        folder / "out",
        calibrate_on=folder / "val.parquet",
        compare_with=folder / "test.parquet",
        catalog=folder / "c.csv",
        catalog_scores=folder / "real.parquet",
        options=EvaluationOptions(resamples=20, completeness_axes=AXES, examples=2),
    )
    good = (folder / "out" / "report.html").read_text()
    # A page that is too wide and loads a picture, without the policy of the page and with it.
    (folder / "out" / "guarded.html").write_text(
        good.replace("</header>", '<img src="x.png" alt="x"></header>', 1)
    )
    bad = '<img src="y.png"><p style="max-width:none;width:900px;color:#aaa">wide</p></header>'
    (folder / "out" / "bad.html").write_text(
        re.sub(r"<meta http-equiv[^>]*>", "", good).replace("</header>", bad, 1)
    )
    return folder / "out"


@pytest.fixture(scope="module")
def looked(folder):
    """What the browser makes of the report in each mode and width, and asks a server for."""
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
    seen = {}
    try:
        for mode, pages in (("light", ("bad.html", "guarded.html")), ("dark", ())):
            frames = [("report.html", width) for width in WIDTHS] + [(page, 390) for page in pages]
            (folder / "probe.html").write_text(PROBE.replace("FRAMES", json.dumps(frames)))
            address = f"http://127.0.0.1:{server.server_address[1]}/probe.html"
            scheme = f"--blink-settings=preferredColorScheme={int(mode == 'light')}"
            found = run(scheme, "--dump-dom", address)
            text = re.search(r'<pre id="out">(.*?)</pre>', found.stdout, re.DOTALL)
            assert text, found.stderr[-2000:]
            text = text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
            for (page, width), what in zip(frames, json.loads(text), strict=True):
                seen[page, mode, width] = what
    finally:
        server.shutdown()
        server.server_close()
    return seen, set(asked)


@pytest.fixture(params=[(mode, width) for mode in MODES for width in WIDTHS], ids=str)
def page(looked, request):
    """A width, and what is seen there of the report."""
    return *request.param, looked[0]["report.html", *request.param]


def test_the_page_fits_and_every_figure_is_drawn(page):
    _, width, seen = page
    assert seen["width"] == width
    assert seen["scroll"] <= width, seen["wide"][:5]
    assert seen["wide"] == []
    assert seen["images"] >= 12
    assert seen["broken"] == 0
    assert seen["height"] > 3000
    assert seen["beside"] == (width == 1600)  # a table of contents beside the text


def test_text_is_legible_in_light_and_dark(page):
    mode, _, seen = page
    assert seen["faint"] == []
    assert seen["paper"] > 0.9 if mode == "light" else seen["paper"] < 0.05
    # Paper is white, whatever the screen is.
    assert seen["dark"]
    assert all("screen" in rule for rule in seen["dark"])


def test_everything_has_a_name_and_a_place(page):
    _, _, seen = page
    assert seen["nameless"] == []
    assert [seen[kind] for kind in ("captions", "scopes", "regions", "lost")] == [0, 0, 0, 0]
    assert seen["twice"] == []
    assert seen["mains"] == 1
    steps = seen["headings"]
    assert steps[0] == 1
    assert steps.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(steps))


def test_the_keyboard_goes_through_the_page_in_its_order(page):
    _, _, seen = page
    assert seen["first"] == "#main"
    assert seen["skip"] == [True, True]  # seen once it has the focus
    assert seen["order"]
    assert seen["positive"] == 0


def test_a_stamp_is_enlarged_without_a_script(page):
    _, width, seen = page
    opened = seen["opened"]
    assert opened["open"]
    assert opened["closed"]
    assert opened["kind"] == "auto"  # Escape closes it
    assert opened["wide"] > 0.5 * min(width, 500)
    assert "RA, Dec" in opened["text"]
    assert opened["low"] > 4.5


def test_the_page_asks_the_network_for_nothing(looked, page):
    assert page[2]["loaded"] == []
    assert looked[1] <= {
        *("/probe.html", "/report.html", "/favicon.ico"),
        *("/bad.html", "/guarded.html", "/y.png"),
    }


def test_the_probe_sees_what_it_looks_for(looked):
    """A page that is too wide and loads a picture is caught, if only its policy lets it."""
    seen, asked = looked
    bad = seen["bad.html", "light", 390]
    assert bad["scroll"] > 390
    assert bad["broken"] == 1
    assert any(name.endswith("/y.png") for name in bad["loaded"])
    assert len(bad["faint"]) == 1
    assert len(bad["nameless"]) == 1
    assert "/y.png" in asked
    # The policy of the page itself keeps even such a page from asking.
    assert "/x.png" not in asked
    assert seen["guarded.html", "light", 390]["broken"] == 1


def test_the_page_prints(folder, tmp_path):
    pdf = tmp_path / "report.pdf"
    run(f"--print-to-pdf={pdf}", "--no-pdf-header-footer", f"file://{folder}/report.html")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", content))
    assert 3 <= pages <= 20
