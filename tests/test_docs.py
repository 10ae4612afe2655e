"""The documentation: generated pages are fresh, what is named exists, and every option is told."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_generated_reference_is_fresh():
    program = ROOT / "docs" / "generate_reference.py"
    done = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_path_of_the_guide_for_contributors_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`((?:lensprep|lenstrain|tests|docs)/[\w./]*)`", text))
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_make_target_of_the_guide_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert named
    assert {*named} <= {*targets}


def test_every_test_that_a_page_names_exists():
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    for page in PAGES:
        for name in re.findall(r"[\w/]*\btest_\w+\.py", page.read_text()):
            assert any(f"/{file}".endswith(f"/{name}") for file in files), (page.name, name)


def test_every_page_is_linked_from_another():
    texts = {page: page.read_text() for page in PAGES}
    for page in PAGES[1:] if PAGES[0].name == "README.md" else PAGES:
        if page.name == "README.md":
            continue
        assert any(page.name in text for other, text in texts.items() if other != page), page


def test_every_reject_reason_is_in_the_reference():
    from lensprep.decode.reasons import FilterReason, RejectReason

    text = (ROOT / "docs" / "reference" / "dataset.md").read_text()
    for reason in (*FilterReason, *RejectReason):
        assert f"| `{reason.value}` | {reason.__doc__} |" in text


def test_every_kind_of_counterfactual_is_explained():
    from lensprep.dataset.layout import COUNTERFACTUALS

    text = (ROOT / "docs" / "how-to" / "counterfactuals.md").read_text()
    for kind in COUNTERFACTUALS:
        assert re.search(rf"^\| `{kind}` \| .+ \| (non-)?lens \| .+ \|$", text, re.M), kind


def test_every_make_target_of_the_readme_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for name in re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M):
        assert name in targets


def test_the_page_of_installing_tells_every_extra_and_what_the_demo_installs():
    text = (ROOT / "docs" / "how-to" / "install.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {*re.findall(r"^\| `(\w+)` \|", text, re.M)} == {*extras}
    (demo,) = re.findall(
        r"^\$\(DEMO_STAMP\): EXTRAS = (.+)$", (ROOT / "Makefile").read_text(), re.M
    )
    assert f"'.[{demo}]'" in text


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "docs" / "reference" / "api.html").read_text()
    for name in ("dataset.Dataset.open", "convert.convert", "engine.make_engine"):
        assert f'id="lensprep.{name}"' in api
    for page in tmp_path.rglob("*.html"):
        loads = r"<(?:script|img|iframe)[^>]* src=\"?(\w*:?//\S+)"
        sheets = r"<link[^>]* rel=\"?(?:stylesheet|preconnect|preload)[^>]*href=\"?(\w*:?//\S+)"
        text = page.read_text()
        assert not [*re.findall(loads, text), *re.findall(sheets, text)], page
