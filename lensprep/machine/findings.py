"""How a doctor judges: what is as it should be, what is to be mended, what is in the way."""

from __future__ import annotations

from typing import Any

from lensprep.checks.finding import Finding, Severity


def passed(item: str, detail: str) -> Finding:
    """That something is as it should be."""
    return Finding(item=item, passed=True, detail=detail)


def judged(item: str, severity: Severity, measured: Any, detail: str) -> Finding:
    """Something to be mended; a blocker makes the work impossible."""
    return Finding(item=item, severity=severity, passed=False, measured=measured, detail=detail)


def level(finding: Finding) -> str:
    """``ok``, ``warn`` or ``problem``."""
    if finding.passed is not False:
        return "ok"
    return "problem" if finding.severity == "blocker" else "warn"
