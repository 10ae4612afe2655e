"""Every command and program that the documentation shows: read as the program reads it, and run.

A new command is parsed here, and run by `make test-slow` (`tests.snippetworld` says on what). One
that cannot run has a line with the reason in `NOT_RUN`; a program in Python, in `NOT_EXECUTED`.
"""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from lensprep.checks.check import check
from tests.snippets import PROGRAMS, Shown, blocks, check_settings, commands, parsed
from tests.snippetworld import Sandbox, World, write_cutouts

NOT_RUN = {
    r"(\S*/)?(pip|conda|aws|dask|spark-submit|tensorboard|echo) ": "no program of this project",
    r"(sha256sum|mlcroissant|rocrate-validator) ": "programs of others",
    r"(python3\S* -m venv|source) ": "no program of this project",
    r"make ": "targets take minutes to hours; test_docs.py looks them up in the Makefile",
    r"torchrun ": "eight GPUs; tests/lenstrain/training runs groups of processes",
    r"\S*python -m tests\.benchmarks": "measures for minutes",
    r".*--engine dask --scheduler": "a cluster; tests/lensprep/engine runs one",
    r"(lensprep|lenstrain) bench\b": "measures for minutes; tests/lenstrain/bench, test_bench.py",
    r"lenstrain (sweep|generalize) ": "trains often; tests/lenstrain/sweep, test_generalize.py",
    r"eval |_\w+_COMPLETE=": "for an interactive shell; test_completion.py",
    r".*lenstrain audit .*--run-checks": "trains for minutes; tests/lenstrain/audit",
    r".*lenstrain (probe|audit) demo/run": "of the demo, on which `make demo` ends",
    r".*lenstrain publish ": "refuses code that is not committed yet; tests/lenstrain/publish",
    r"lenstrain monitor .*--watch": "does not end; tests/lenstrain/monitor",
    r"lenstrain cache clear .*--dataset": "names a dataset by its id; tests/lenstrain/data/cache",
    r"lensprep synth .*--rows 2000": "minutes; the world of these tests is made by it, smaller",
}
"""Commands that are parsed and not run, each with the reason."""

NOT_EXECUTED = {
    "docs/how-to/cluster.md": "needs Slurm",
    "docs/how-to/evaluate.md": "imports what `evaluate --selection-function` writes",
    "docs/how-to/counterfactuals.md": "continues the program of the README",
}
"""Pages whose programs in Python are compiled and not run, each with the reason."""

FINE = {"audit": {0, 3, 4}, "doctor": {0, 1}}
"""Exit statuses besides 0: a verdict, and a machine that is not fit for what is asked."""

PYTHON = [block for block in blocks() if block.language == "python"]
OURS = [shown for shown in commands() if shown.is_ours]


def why_not(shown: Shown) -> str | None:
    """Why a command is not run."""
    return next((why for form, why in NOT_RUN.items() if re.match(form, shown.text)), None)


@pytest.mark.parametrize("place", list(dict.fromkeys(shown.place for shown in OURS)))
def test_every_command_is_one_that_the_program_takes(place):
    for shown in OURS:
        if shown.place == place:
            check_settings(parsed(shown))


def test_commands_stand_in_blocks_of_their_own_language():
    for block in blocks():
        first = block.text.split(maxsplit=1)[0] if block.text.strip() else ""
        assert first not in PROGRAMS or block.language == "sh", block.place


def test_every_command_is_run_or_has_a_reason():
    missing = [s for s in commands() if not (s.is_ours or s.program == "python" or why_not(s))]
    assert not missing
    for form in NOT_RUN:
        assert any(re.match(form, shown.text) for shown in commands()), f"no command is {form}"
    for page in NOT_EXECUTED:
        assert any(block.page == page and block.language == "python" for block in blocks()), page


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_every_program_is_one(block):
    compile(block.text, block.place, "exec")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


PLACES: dict[str, list[Shown]] = defaultdict(list)
for shown in commands():
    if why_not(shown) is None:
        PLACES[shown.page].append(shown)


@pytest.fixture
def sandbox(world, s3, tmp_path, monkeypatch):
    made = Sandbox(tmp_path / "page", world, s3.uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.http)
    monkeypatch.chdir(made.folder)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("page", PLACES)
def test_the_commands_of_a_page_run_one_after_the_other(page, sandbox):
    for shown in PLACES[page]:
        if shown.is_ours:
            result = sandbox.run(shown)
            fine = next((found for name, found in FINE.items() if name in shown.words), {0})
            assert isinstance(result.exception, SystemExit | None), result.exception
            assert result.exit_code in fine, f"{shown.place}: {shown.text}\n{result.output}"
        else:
            done = sandbox.run_program(shown)
            assert done.returncode == 0, f"{shown.place}: {shown.text}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({b.page for b in PYTHON} - NOT_EXECUTED.keys()))
def test_the_programs_of_a_page_run(page, sandbox):
    sandbox.provide("/nvme/lenses", "dataset")
    for name in ("finder.onnx", "finder.pt2", "finder.safetensors", "flux.npy"):
        sandbox.provide(name, name)
    names = {}
    for block in PYTHON:
        if block.page == page and "sys.argv" not in block.text:
            text = sandbox.here(block.text).replace("DATASET", sandbox.here("/nvme/lenses"))
            exec(compile(text, block.place, "exec"), names)


def test_the_program_of_the_page_about_cutouts_writes_a_valid_tree(tmp_path, monkeypatch):
    write_cutouts(tmp_path)
    (block,) = (b for b in PYTHON if "make_tree.py" in b.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["make_tree.py", "objects.csv", "cutouts", "tree"])
    exec(compile(block.text, block.place, "exec"), {})
    report = check(tmp_path / "tree", pixels=True)
    assert report.rows == 60
    assert report.verdict != "failed", report.to_dict()
