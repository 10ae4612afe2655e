"""Whether a commit is fit to be released, and the section of the changelog that tells of it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from datetime import date
from pathlib import Path


@dataclass(frozen=True)
class Section:
    """The newest section of the changelog: ``## 1.2.3 (2030-01-31)`` and what follows it."""

    version: str
    note: str
    """What stands in parentheses after the version: the date, once there is one."""
    text: str

    @property
    def is_dated(self) -> bool:
        """Whether the note is a date."""
        try:
            return bool(date.fromisoformat(self.note))
        except ValueError:
            return False

    @property
    def is_empty(self) -> bool:
        """Whether nothing but headings stands in it."""
        return all(line.startswith("#") or not line.strip() for line in self.text.splitlines())


def newest_section(changelog: str) -> Section:
    """The first section of a version; one without version and text if there is none."""
    found = re.search(r"^(## (\S+)(?: +\(([^)\n]*)\))?\n.*?)(?=^## |\Z)", changelog, re.M | re.S)
    return Section(found[2], found[3] or "", found[1]) if found else Section("", "", "")


def git(root: Path, *words: str) -> str:
    """What git prints; its own message if it fails, as in a folder that is no checkout."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout.strip()


def refusals(root: Path, dry: bool = False) -> list[str]:
    """Why the commit that is checked out in a folder cannot be released: one line for each reason.

    Parameters
    ----------
    root : Path
        The work tree.
    dry : bool
        Whether the section of the changelog may lack its date.
    """
    section = newest_section((root / "CHANGELOG.md").read_text())
    versions = {
        "lensprep/__init__.py": _found(root / "lensprep" / "__init__.py", r'__version__ = "(.*)"'),
        "CITATION.cff": _found(root / "CITATION.cff", r"version: (.*)"),
        "CHANGELOG.md": section.version,
    }
    tag = f"v{section.version}"
    found = []
    if changes := git(root, "status", "--porcelain").splitlines():
        found.append(f"The work tree has changes: {'; '.join(changes)}. Commit or remove them.")
    if len({*versions.values()}) > 1:
        named = ", ".join(f"{version or 'none'} in {file}" for file, version in versions.items())
        found.append(f"The versions differ: {named}.")
    if section.is_empty:
        found.append(f"The section {section.version or 'of a version'} of CHANGELOG.md is empty.")
    if not (section.is_dated or dry):
        found.append(
            f"The section {section.version} of CHANGELOG.md has no date: "
            f"write it as {section.version} (2030-01-31). Until then: make release DRY=1."
        )
    if git(root, "tag", "--list", tag) and git(root, "tag", "--list", tag, "--points-at") != tag:
        found.append(f"{tag} is the tag of another commit: a version is released once.")
    return found


def _found(file: Path, pattern: str) -> str:
    found = re.search(rf"^{pattern}$", file.read_text(), re.M)
    return found[1].strip("\"'") if found else ""
