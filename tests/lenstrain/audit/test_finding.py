"""The verdict: what each combination of findings comes to."""

import pytest

from lensprep.checks.finding import Finding
from lenstrain.audit.finding import EXIT_CODES, decide


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
