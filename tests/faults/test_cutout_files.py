"""Damaged cutouts of every format: none past the reader, none read against its checksum.

The long form, 10,000 files, takes about four minutes of one core.
"""

import json
import subprocess
import sys

import pytest


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("files", [120, pytest.param(10_000, marks=pytest.mark.faults)])
def test_no_damaged_cutout_gets_past_the_reader(tmp_path, files):
    command = [sys.executable, "-W", "error", "-m", "tests.faults.cutout_mutants"]
    ran = subprocess.run(
        [*command, "0", str(files), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"mutant {ran.stdout[-10:].split()[-1]}:\n{ran.stderr[-3000:]}"
    found = json.loads((tmp_path / "found.json").read_text())
    reasons = found["reasons"]
    assert sum(reasons.values()) == files
    damaged = "unreadable", "truncated", "crc_mismatch", "wrong_format"
    assert sum(reasons[reason] for reason in damaged) > files / 3
    assert reasons[""] > files / 30  # some damage does no harm, or has no checksum: both are seen
    assert found["checked"] > 0
    assert found["peak"] < 2**29
