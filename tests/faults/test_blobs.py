"""No blob ends the process: compiled kernels find what interpreted ones do, and what np.load reads.

The long form, two million blobs, takes about twenty minutes with two cores.
"""

import io
import os
import subprocess
import sys
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from lensprep.decode import zipwalk
from lensprep.decode.stampnpz import decode
from tests.faults import mutants
from tests.lensprep.blobs import by_numpy, npy

UNIT_TESTS = [
    f"tests/{name}.py"
    for name in ("lensprep/decode/test_stampnpz", "lensprep/decode/test_robust",
                 "lensprep/decode/test_normalize",
                 "lensprep/synth/test_imaging", "lenstrain/data/test_order",
                 "lenstrain/data/test_loader", "lenstrain/data/sources/test_local",
                 "lenstrain/evaluation/test_bootstrap")
]  # fmt: skip
"""Of all modules that have kernels."""

CHUNK = 100_000
"""Blobs of one process."""


def start(first, count, out, **environment):
    """A process that walks some mutants; its output is a file, so that it never has to wait."""
    command = [sys.executable, "-W", "error", "-m", "tests.faults.mutants", str(first), str(count)]
    with out.with_suffix(".txt").open("w") as said:
        return subprocess.Popen(
            [*command, str(out)], env=os.environ | environment, stdout=said, stderr=said
        )


def finished(process, out):
    """What a process found; a crash is a failure that says where."""
    status, said = process.wait(), out.with_suffix(".txt").read_text()
    assert status == 0, f"{out.stem} kernels, status {status}, mutants from:\n{said[-2000:]}"
    return np.load(out)


def both(folder, first, count):
    """What compiled and interpreted kernels find in the same mutants, side by side."""
    modes = {"compiled.npy": "0", "interpreted.npy": "1"}
    with ExitStack() as stack:
        running = {}
        for name, off in modes.items():
            process = start(first, count, folder / name, NUMBA_DISABLE_JIT=off)
            running[name] = stack.enter_context(process)
            stack.callback(process.kill)
        return [finished(process, folder / name) for name, process in running.items()]


@pytest.mark.timeout(5400)
@pytest.mark.parametrize("blobs", [2_000, pytest.param(2_000_000, marks=pytest.mark.faults)])
def test_compiled_and_interpreted_kernels_and_numpy_agree(tmp_path, blobs):
    reasons = np.zeros(zipwalk.OVERSIZED + 1, np.int64)
    for first in range(0, blobs, CHUNK):
        compiled, interpreted = both(tmp_path, first, min(CHUNK, blobs - first))
        differ = np.flatnonzero((compiled != interpreted).any(axis=1))
        assert not len(differ), f"mutants {(first + differ[:5]).tolist()} are read in two ways"
        reasons += np.bincount(compiled[:, 0], minlength=len(reasons))
    assert reasons[zipwalk.READ] > 0.1 * blobs  # some damage does no harm: both sides are seen
    assert (reasons[[zipwalk.TRUNCATED, zipwalk.BAD_ZIP, zipwalk.UNSUPPORTED, zipwalk.DUPLICATE,
                     zipwalk.MISSING, zipwalk.OVERSIZED]] > 0).all()  # fmt: skip


def test_a_code_of_deflate_without_meaning_is_read_as_documented():
    """One flipped bit makes 286 or 287 of code 285: zlib refuses, the pixels are what they were."""
    number = 38_990
    kind, blob = mutants.kind_of(number), mutants.mutant(number)
    refused = by_numpy(blob, kind)
    assert isinstance(refused, zlib.error)
    pixels = np.empty(kind.shape, np.float32)
    assert decode(blob, pixels, kind.bands) is None
    mutants.compare_with_numpy(blob, None, pixels, kind)
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        for member, band in zip(archive.infolist(), pixels, strict=True):
            assert zlib.crc32(npy(band)) == member.CRC


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kernel_reads_outside_its_arrays(tmp_path):
    """numba's bounds check raises where kernels would read on: under damage, and unit tests."""
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    finished(start(0, 20_000, tmp_path / "checked.npy", **checked), tmp_path / "checked.npy")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *UNIT_TESTS,
         "-m", "not slow and not gpu and not faults", "-k", "not little"],
        env=os.environ | checked, cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr
