"""Packages proved as users have them: in fresh environments, away from the checkout."""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.release.shell import Failed, Shell

ROWS = 1500
MADE = ("stamps.png", "test.parquet", "report/report.html", "report/figures/roc.png")
SDIST_TESTS = (
    "tests/test_docs.py",
    "tests/test_layering.py",
    "tests/lensprep/decode",
    "tests/lensprep/test_configfile.py",
)
"""Tests that need files of every folder of the sdist."""


def prove(python: str, package: Path, version: str, root: Path, log: Path) -> str:
    """Install a package in a fresh environment, and run from it the base, then the whole demo.

    The base is installed alone at first: conversion has no use for what the extras bring.

    Parameters
    ----------
    python : str
        The interpreter.
    package : Path
        Wheel or sdist.
    version : str
        Which version it is.
    root : Path
        The checkout: its `constraints.txt`, the recipe of its Makefile, and its golden data.
    log : Path
        The log.

    Returns
    -------
    str
        What came of the demo.

    Raises
    ------
    Failed
        If a command fails, runs code of another place or version, or leaves no sound report.
    """
    with tempfile.TemporaryDirectory(prefix="lensprep-release-") as name:
        shell, env = Shell(Path(name), log), Path(name, "env")
        pip = [env / "bin/python", "-m", "pip", "install", "--no-compile", "--progress-bar", "off"]
        pip += ["-c", root / "constraints.txt"]
        lensprep, lenstrain = env / "bin/lensprep", env / "bin/lenstrain"
        shell.run(python, "-m", "venv", env)
        shell.run(*pip, package)
        _check_origin(shell, env, version)
        golden = root / "tests" / "golden" / "phase4c"
        shell.run(lensprep, "convert", golden, "golden", "--max-reject-rate", "1")
        shell.run(lensprep, "verify", "golden")
        shell.run(lensprep, "survey", "show", "hsc")
        shell.run(lenstrain, "config", "show", "demo")
        shell.run(*pip, f"{package}[train,synth]")
        recipe = ["make", "-f", root / "Makefile", "-o", env / ".installed-demo", "demo"]
        shell.run(*recipe, f"VENV={env}", "DEMO=demo", f"DEMO_ROWS={ROWS}")
        return f"the demo ends in an AUROC of {_auroc(Path(name, 'demo'), log):.3f}"


def _check_origin(shell: Shell, env: Path, version: str) -> None:
    """Both commands are of this version, and both packages come from the environment."""
    for command in ("lensprep", "lenstrain"):
        said = shell.run(env / "bin" / command, "--version").strip()
        if said != f"{command}, version {version}":
            raise Failed(f"{command} --version says {said}, not {version}: see {shell.log}")
        program = f"import {command}; print({command}.__file__)"
        place = shell.run(env / "bin" / "python", "-c", program).strip()
        if not Path(place).is_relative_to(env):
            raise Failed(f"{command} is imported from {place}: see {shell.log}")


def _auroc(demo: Path, log: Path) -> float:
    """The AUROC of a demo that left all it should, and ranks lenses before non-lenses."""
    if missing := [name for name in MADE if not (demo / name).is_file()]:
        raise Failed(f"The demo left no {', '.join(missing)}: see {log}")
    auroc: float = json.loads((demo / "report" / "metrics.json").read_text())["auroc"]["value"]
    if not 0.5 < auroc <= 1:
        raise Failed(f"The AUROC of the demo is {auroc}: see {log}")
    return auroc


def run_tests(sdist: Path, log: Path) -> str:
    """Collect all tests of an sdist, and run some, from its own files.

    Returns
    -------
    str
        How many passed.

    Raises
    ------
    Failed
        If a test fails, or cannot be collected for lack of a file.
    """
    with tempfile.TemporaryDirectory(prefix="lensprep-release-") as name:
        with tarfile.open(sdist) as tar:
            tar.extractall(name, filter="data")
        (folder,) = Path(name).iterdir()
        shell = Shell(folder, log)
        own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        pytest = [sys.executable, "-m", "pytest", "-q"]
        shell.run(*pytest, "--collect-only", **own)
        fast = ["-m", "not slow and not gpu and not faults"]
        return shell.run(*pytest, *fast, *SDIST_TESTS, **own).strip().splitlines()[-1]
