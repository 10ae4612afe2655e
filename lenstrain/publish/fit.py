"""Whether a run is fit to be published: items of the audit, and what the authors owe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from lensprep.errors import ConfigError, NotFoundError, ProjectError, ScoresError
from lensprep.store import Uri, file_sha256
from lenstrain.audit.checklist import CHECKLIST, run_item
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.publish.facts import About
from lenstrain.training.checkpoint import git_commit

ITEMS: Final = ("provenance", "test_once", "full_eval", "rescored", "report_figures")
"""Items of the audit without which figures are not those of this finder on an unseen split."""


def find_faults(evidence: Evidence, about: About) -> list[str]:
    """Why a run is not fit to be published, a sentence or two each; none if it is."""
    config = AuditConfig()
    findings = [run_item(item, evidence, config) for item in CHECKLIST if item.name in ITEMS]
    faults = [
        f"{finding.item}: {finding.detail} {finding.remedy}".strip()
        for finding in findings
        if finding.passed is not True
    ]
    if str(git_commit()).endswith("+"):
        faults.append("code: it was changed after its commit. Commit it, and publish again.")
    if not about.license:
        faults.append("license: none is named. Choose one: --set license=CC-BY-4.0.")
    missing = [name for name in ("title", "authors") if not getattr(about, name)]
    faults += [f"{name}: not given. Give it in the file of --about." for name in missing]
    return faults


def check_about(about: About) -> None:
    """Refuse, with ConfigError, licences that SPDX does not know and names that cannot be read."""
    for name in ("license", "data_license"):
        text = getattr(about, name)
        try:
            known = not text or canonicalize_license_expression(text) == text
        except InvalidLicenseExpression:
            known = False
        if not known:
            raise ConfigError(
                f"{name}: {text!r:.80} is no identifier of SPDX, such as CC-BY-4.0 (they are "
                "listed at https://spdx.org/licenses)."
            )
    for name in ("url", "data_url"):
        if (text := getattr(about, name)) and not re.fullmatch(r"https?://[^\s<>\"]+", text):
            raise ConfigError(f"{name}: {text!r:.80} is no address that begins with https://.")
    for person in about.people:
        if "orcid.org/" in person.url and not _is_orcid(person.url[-19:]):
            raise ConfigError(f"authors: the ORCID {person.url[-19:]} is none: its digits differ.")


def _is_orcid(text: str) -> bool:
    """Whether the last digit is that of the others, by ISO 7064, MOD 11-2."""
    digits, total = text.replace("-", ""), 0
    for digit in digits[:-1]:
        total = (total + int(digit)) * 2
    return digits[-1] == "0123456789X"[(12 - total % 11) % 11]


def find_table(stated: Uri | None, sha256: str | None, near: Iterable[Uri], option: str) -> Uri:
    """The table of scores that a report was made from, by its digest.

    Raises
    ------
    ScoresError
        If it is neither where the report says nor among `near`.
    """
    for path in (stated, *near):
        try:
            if path is not None and file_sha256(path) == sha256:
                return path
        except (NotFoundError, ProjectError):
            continue
    raise ScoresError(
        f"{stated}, which the report was made from, was moved or changed. Name it with {option}."
    )
