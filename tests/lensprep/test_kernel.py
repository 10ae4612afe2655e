"""Compiled kernels work where nothing can be kept, and keep what they can."""

import os
import subprocess
import sys
from pathlib import Path

import lensprep

READ_ONLY = """
import sys
from numba.core import caching
for locator in ("InTreeCacheLocator", "UserWideCacheLocator", "InTreeCacheLocatorFsAgnostic"):
    if hasattr(caching, "_" + locator):
        setattr(getattr(caching, "_" + locator), "from_function", classmethod(lambda *_: None))
import numpy as np
from lensprep.robust import median_mad
stats = median_mad(np.arange(12, dtype=np.float32).reshape(1, 3, 4))
print(stats.median.tolist())
"""


def run(code, **environment):
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | environment
    folder = Path(lensprep.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=env, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_kernels_work_where_no_folder_can_be_written():
    ran = run(READ_ONLY)
    assert ran.stdout.strip() == "[[1.5, 5.5, 9.5]]", ran.stderr


def test_cache_folder_can_be_named(tmp_path):
    ran = run(READ_ONLY, NUMBA_CACHE_DIR=str(tmp_path))
    assert ran.stdout.strip() == "[[1.5, 5.5, 9.5]]", ran.stderr
    assert list(tmp_path.rglob("robust.*.nbc"))
