"""The one decorator of all compiled kernels.

A kernel is compiled at its first call and its machine code kept beside the module, or, where
site-packages is read-only, in the user's cache folder. ``NUMBA_CACHE_DIR`` names another folder
(Spark and Dask executors often need it). Where nothing can be written the kernels still work, and
are compiled anew, some seconds, in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`: without the GIL, IEEE arithmetic (no fast-math), division as in NumPy.

    Call other kernels of the same file only: the kept machine code is renewed when its own file
    changes, not when another one does.
    """
    try:
        compiled: Callable[..., Any] = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba found no folder that it may write to
        compiled = njit(nogil=True, error_model="numpy")(function)
    return compiled
