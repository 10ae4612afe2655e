"""Completion by the shell: what the Tab key offers, in three shells, without much import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from click.shell_completion import get_completion_class

from tests.snippets import PROGRAMS


def offered(monkeypatch, words, shell="bash"):
    """The lines that a shell gets for a command line, the last word of which is incomplete."""
    program, *_ = words.split(" ")
    monkeypatch.setenv("COMP_WORDS", words)
    *before, last = words.split(" ")
    monkeypatch.setenv("COMP_CWORD", last if shell == "fish" else str(len(before)))
    variable = f"_{program.upper()}_COMPLETE"
    complete = get_completion_class(shell)(PROGRAMS[program], {}, program, variable).complete()
    return complete.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("lensprep con", "convert"),
        ("lensprep convert --max-re", "--max-reject-rate"),
        ("lensprep convert --normalize mad_", "mad_annulus"),
        ("lenstrain tr", "train"),
        ("lenstrain bench lo", "loader"),
        ("lenstrain infer --prec", "--precision"),
    ],
)
def test_commands_options_and_choices_are_completed(shell, words, wanted, monkeypatch):
    assert any(wanted in line for line in offered(monkeypatch, words, shell))


@pytest.mark.parametrize(
    "words", ["lensprep inspect dem", "lenstrain train da", "lenstrain train data --config con"]
)
def test_paths_are_left_to_the_shell(words, monkeypatch):
    last = words.split(" ")[-1]
    assert offered(monkeypatch, words) == [f"file,{last}"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_completion_imports_nothing_heavy(program):
    code = (
        "import sys\n"
        f"from {program}.cli import main\n"
        "try:\n"
        f"    main(prog_name={program!r})\n"
        "finally:\n"
        "    heavy = {'torch', 'numba', 'matplotlib', 'scipy', 'astropy', 'boto3', 'optuna'}\n"
        "    print('heavy:', sorted(heavy & sys.modules.keys()))\n"
    )
    words = {f"_{program.upper()}_COMPLETE": "bash_complete", "COMP_WORDS": f"{program} ben"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | words | {"COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["plain,bench", "heavy: []"], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_script_of_a_shell_is_one(program, shell):
    variable = f"_{program.upper()}_COMPLETE"
    made = get_completion_class(shell)(PROGRAMS[program], {}, program, variable).source()
    assert f"{variable}={shell}_complete" in made.replace("env ", "")
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=made, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
