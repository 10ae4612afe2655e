"""Commands of a release: without the checkout and the make around them; a failure names its log."""

import sys

import pytest

from tests.release.shell import Failed, Shell


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path, tmp_path / "run.log")


def test_neither_the_checkout_nor_the_options_of_make_come_along(shell, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/checkout")
    monkeypatch.setenv("MAKEFLAGS", "-- VENV=other")
    monkeypatch.setenv("VIRTUAL_ENV", "/other")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    program = "import os; print(os.getcwd(), dict(os.environ))"
    said = shell.run(sys.executable, "-c", program, OMP_NUM_THREADS="1")
    assert str(shell.folder) in said
    assert "/checkout" not in said
    assert "other" not in said
    assert "'PIP_INDEX_URL': 'kept'" in said
    assert "'OMP_NUM_THREADS': '1'" in said


def test_a_failure_names_command_status_and_log_which_has_all_that_was_run(shell):
    assert shell.run("echo", "first") == "first\n"
    program = "import sys; print('second'); sys.exit('third')"
    with pytest.raises(Failed, match=r"ended with status 1: see .*run\.log") as failed:
        shell.run(sys.executable, "-c", program)
    assert "import sys" in str(failed.value)
    lines = shell.log.read_text().splitlines()
    assert lines[:2] == ["$ echo first", "first"]
    assert {*lines[3:]} == {"second", "third"}
