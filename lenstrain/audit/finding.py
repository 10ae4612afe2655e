"""What an item of the checklist found, and the verdict that follows from all items (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from lensprep.checks.finding import Finding, Severity
from lensprep.errors import ProjectError

Verdict = Literal["GO", "CONDITIONAL", "NO-GO"]

EXIT_CODES: Final[dict[Verdict, int]] = {"GO": 0, "CONDITIONAL": 3, "NO-GO": 4}


class NotRunError(ProjectError):
    """An item could not be measured; the message says why, and how to supply what it needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a check measured."""

    passed: bool | None = None
    """None: not run, or not judged if something was measured."""
    measured: Any = None
    threshold: Any = None
    detail: str
    severity: Severity | None = None
    """Severity of the finding, if it depends on what was measured."""
    remedy: str = ""
    """What to do, if it depends on what was measured."""


def decide(findings: Iterable[Finding]) -> Verdict:
    """NO-GO if a blocker failed or was not run; else CONDITIONAL if a warning failed; else GO."""
    found = list(findings)
    if any(f.severity == "blocker" and f.passed is not True for f in found):
        return "NO-GO"
    if any(f.severity == "warn" and f.passed is False for f in found):
        return "CONDITIONAL"
    return "GO"
