"""A commit is released only if tree, versions and changelog are as they should be."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.release.state import git, newest_section, refusals

ROOT = Path(__file__).parents[2]
CHANGELOG = """\
# Changelog

## 1.2.0 (2030-01-31)

### Added

- A thing (`f(x)`).

## 1.1.0 (2029-12-24)

- Another.
"""


@pytest.fixture
def project(tmp_path):
    """A clean checkout that is fit to be released as 1.2.0."""
    (tmp_path / "lensprep").mkdir()
    (tmp_path / "lensprep" / "__init__.py").write_text(
        '"""A package."""\n\n__version__ = "1.2.0"\n'
    )
    (tmp_path / "CITATION.cff").write_text('cff-version: 1.2.0\nversion: "1.2.0"\nlicense: MIT\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(root):
    git(root, "add", "--all")
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    git(root, *who, "commit", "--quiet", "--message", "A change")


def edit(root, file, old, new):
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    commit(root)


def test_a_clean_commit_with_one_version_and_a_dated_section_is_released(project):
    assert refusals(project) == []


def test_changes_of_the_work_tree_are_refused_and_named(project):
    (project / "CITATION.cff").unlink()
    (project / "CITATION.cff").write_text("version: 1.2.0\n")
    (project / "notes.txt").touch()
    (line,) = refusals(project, dry=True)
    assert "M CITATION.cff; ?? notes.txt. Commit" in line


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lensprep/__init__.py", "1.2.0", "1.3.0"),
        ("lensprep/__init__.py", "__version__", "version"),
        ("CITATION.cff", 'version: "1.2.0"', "version: 1.1.0"),
        ("CHANGELOG.md", "1.2.0", "1.2.1"),
    ],
)
def test_versions_that_differ_are_refused(project, file, old, new):
    edit(project, file, old, new)
    (line,) = refusals(project, dry=True)
    assert line.startswith("The versions differ: ")
    assert all(name in line for name in ("lensprep/__init__.py", "CITATION.cff", "CHANGELOG.md"))


def test_a_section_of_headings_alone_is_refused(project):
    edit(project, "CHANGELOG.md", "- A thing (`f(x)`).\n", "")
    assert refusals(project, dry=True) == ["The section 1.2.0 of CHANGELOG.md is empty."]


def test_a_changelog_without_sections_is_refused(project):
    edit(project, "CHANGELOG.md", CHANGELOG, "# Changelog\n")
    assert [line.split(":")[0] for line in refusals(project, dry=True)] == [
        "The versions differ",
        "The section of a version of CHANGELOG.md is empty.",
    ]


@pytest.mark.parametrize("note", ["", " (not released yet)", " (2030-02-31)"])
def test_a_section_without_a_date_is_refused_unless_it_is_a_dry_run(project, note):
    edit(project, "CHANGELOG.md", " (2030-01-31)", note)
    (line,) = refusals(project)
    assert line.startswith("The section 1.2.0 of CHANGELOG.md has no date: ")
    assert refusals(project, dry=True) == []


def test_a_version_that_is_tagged_is_not_released_from_another_commit(project):
    git(project, "tag", "v1.2.0")
    assert refusals(project) == []
    edit(project, "CHANGELOG.md", "A thing", "Something else")
    assert refusals(project) == ["v1.2.0 is the tag of another commit: a version is released once."]


def test_a_folder_that_is_no_checkout_ends_in_one_line(project):
    (project / ".git").rename(project / "elsewhere")
    with pytest.raises(SystemExit, match="not a git repository"):
        refusals(project)


def test_the_notes_are_the_newest_section_with_its_heading():
    section = newest_section(CHANGELOG)
    assert (section.version, section.note) == ("1.2.0", "2030-01-31")
    assert section.text == "## 1.2.0 (2030-01-31)\n\n### Added\n\n- A thing (`f(x)`).\n\n"


def test_a_release_is_proved_with_every_python_that_the_package_declares():
    (told,) = re.findall(r"^PYTHONS \?= (.+)$", (ROOT / "Makefile").read_text(), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    declared = [name.removeprefix(prefix) for name in project["classifiers"] if prefix in name]
    assert told.split() == [f"python{version}" for version in declared]
    assert project["requires-python"] == f">={declared[0]}"
