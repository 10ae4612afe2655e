"""Compiled kernels work where nothing can be kept, keep what they can, and are not silent."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lensprep
import lenstrain
from tests.plainuser import PLAIN_USER

MODULE = """
from lensprep.kernel import kernel

@kernel
def twice(x):
    return 2 * x

@kernel
def thrice(x):
    return twice(x) + x
"""

CALL = """
import logging, sys
from lensprep import kernel, quick
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
kernel._PATIENCE_S = 0.0
print(quick.thrice(7), quick.twice(0.5), quick.thrice.stats.cache_path)
print(sum(quick.thrice.stats.cache_hits.values()))
"""

NOWHERE = "/dev/null/home"
"""A home that nobody can make."""


@pytest.fixture
def site(tmp_path):
    """A package with two kernels, as installed; its folder is made read-only by the tests."""
    package = tmp_path / "site" / "lensprep"
    package.mkdir(parents=True)
    for name in ("__init__.py", "kernel.py"):
        shutil.copy(Path(lensprep.__file__).with_name(name), package)
    (package / "quick.py").write_text(MODULE)
    (package / "__pycache__").mkdir()
    yield package
    for folder in (package, package / "__pycache__"):
        folder.chmod(0o755)


def read_only(folder):
    (folder / "__pycache__").chmod(0o555)
    folder.chmod(0o555)


def run(site, code=CALL, **environment):
    """Call the kernels as a user without rights beyond the files' own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env = kept | {"PYTHONPATH": str(site.parent), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    return subprocess.run(
        [*PLAIN_USER, sys.executable, "-W", "error", "-c", code],
        env=env, cwd=site.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def answers(ran):
    """What the kernels gave, the folder that keeps them, and how many were loaded."""
    assert ran.returncode == 0, ran.stderr
    first, loaded = ran.stdout.splitlines()
    three, one, folder = first.split(" ", 2)
    assert (three, one) == ("21", "1.0")
    return folder, int(loaded)


def test_read_only_packages_and_no_home_are_no_error(site):
    read_only(site)
    ran = run(site, HOME=NOWHERE)
    assert answers(ran) == ("None", 0)
    assert ran.stderr == (
        "lensprep.kernel: Compiling for this machine: up to a minute, at every start: "
        "NUMBA_CACHE_DIR can name a folder.\n"
    )


def test_a_cache_folder_that_cannot_be_written_is_passed_over(site, tmp_path):
    named, home = tmp_path / "named", tmp_path / "home"
    named.mkdir(mode=0o555)
    read_only(site)
    folder, _ = answers(run(site, HOME=str(home), NUMBA_CACHE_DIR=str(named)))
    assert folder.startswith(str(home))


def test_no_folder_named_tilde_is_made_without_a_home(site):
    read_only(site)
    assert answers(run(site, HOME="~"))[0] == "None"
    assert os.listdir(site.parent) == ["lensprep"]


def test_a_full_disk_is_no_error(site, tmp_path):
    """The first bytes of machine code find no room: a limit of the system, not a mock."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n" + CALL
    folder, _ = answers(run(site, full, NUMBA_CACHE_DIR=str(tmp_path)))
    assert folder.startswith(str(tmp_path))
    assert not list(tmp_path.rglob("*.nbc"))


@pytest.mark.slow
def test_what_is_kept_is_loaded_in_silence_and_what_is_damaged_is_made_anew(site, tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    cold = run(site, **cache)
    assert answers(cold)[1] == 0
    assert cold.stderr == (
        "lensprep.kernel: Compiling for this machine: up to a minute, kept for next time.\n"
    )
    warm = run(site, **cache)
    assert answers(warm)[1] == 1
    assert warm.stderr == ""
    for path in (tmp_path / "cache").rglob("*.nbi"):
        path.chmod(0) if "thrice" in path.name else path.write_bytes(path.read_bytes()[:50])
    assert answers(run(site, **cache))[1] == 0
    for path in (tmp_path / "cache").rglob("*.nbc"):
        path.write_bytes(b"")
    assert answers(run(site, **cache))[1] == 0
    assert answers(run(site, **cache))[1] == 1


def test_all_kernels_have_this_decorator():
    for package in (lensprep, lenstrain):
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            bare = "jit(" in path.read_text() or "import njit" in path.read_text()
            assert not bare or path == root / "kernel.py", path


@pytest.mark.slow
def test_a_first_conversion_says_that_it_compiles_and_a_second_does_not(tmp_path):
    """Once, although two workers compile, and not on standard output."""
    command = [sys.executable, "-m", "lensprep"]
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def call(*arguments):
        ran = subprocess.run(
            [*command, *map(str, arguments), "--workers", "2", "--json"],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert isinstance(json.loads(ran.stdout), dict)
        return ran.stderr.count("Compiling for this machine: up to a minute, kept for next time.")

    assert call("synth", tmp_path / "src", "--rows", 300) == 1
    assert call("convert", tmp_path / "src", tmp_path / "first") == 1
    assert call("convert", tmp_path / "src", tmp_path / "second") == 0
