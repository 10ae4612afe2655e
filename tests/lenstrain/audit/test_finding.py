"""The verdict: what each combination of findings comes to."""

import pytest

from lensprep.checks.finding import Finding
from lenstrain.audit.checklist import CHECKLIST, judged
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.finding import EXIT_CODES, Outcome, decide


def finding(severity, passed):
    return Finding(item="x", group="data", severity=severity, passed=passed, measured=None,
                   threshold=None, detail="")  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([("blocker", True), ("warn", True)], "GO"),
        ([("blocker", True), ("warn", None)], "GO"),
        ([("blocker", True), ("info", False)], "GO"),
        ([("blocker", True), ("warn", False)], "CONDITIONAL"),
        ([("blocker", False), ("warn", True)], "NO-GO"),
        ([("blocker", None), ("warn", True)], "NO-GO"),
        ([("blocker", None), ("warn", False)], "NO-GO"),
    ],
)
def test_the_gravest_finding_decides(pairs, verdict):
    assert decide(finding(*pair) for pair in pairs) == verdict


def test_exit_codes_are_the_designs():
    assert EXIT_CODES == {"GO": 0, "CONDITIONAL": 3, "NO-GO": 4}


@pytest.mark.parametrize(("purpose", "severity"), [("internal", "warn"), ("publish", "blocker")])
def test_an_item_of_a_publication_warns_for_internal_use_even_if_left_out(purpose, severity):
    item = next(item for item in CHECKLIST if item.publish)
    found = judged(item, Outcome(detail="Left out by --only."), AuditConfig(purpose=purpose))
    assert found.severity == severity
