"""Running out of memory: recognised in one place, and told with what to set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from lensprep.errors import OutOfMemoryError, error_line, size_text
from lenstrain.config import Config

WORDS = ("out of memory", "can't allocate memory", "alloc_failed", "allocation_failed")
"""What CUDA, NCCL and torch's allocators say, in lower case, and what cuBLAS and cuDNN do."""
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, NumPy or pyarrow says that there is no memory left."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


@contextmanager
def enough_memory(doing: str, device: torch.device, advice: str) -> Iterator[None]:
    """Tell in one line that the memory does not suffice for the work of the block.

    Parameters
    ----------
    doing : str
        The work and its size, as the beginning of a sentence: "Scoring 512 stamps at a time".
    device : torch.device
        Where it is done.
    advice : str
        What to set.

    Raises
    ------
    OutOfMemoryError
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = _ASKED.search(str(error))
        reason = f"{asked[1]} more were asked for" if asked else error_line(error)
        raise OutOfMemoryError(
            f"{doing} ran out of memory on {_memory(error, device)}: {reason}. {advice}"
        ) from error


def enough_to_train(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """`enough_memory` for the steps of a training."""
    more = 2 * config.optim.accumulate
    advice = (
        f"Set data.batch_size lower, or optim.accumulate={more}, which takes the same step in "
        "smaller parts."
    )
    return enough_memory(f"Training with data.batch_size={config.data.batch_size}", device, advice)


def _memory(error: BaseException, device: torch.device) -> str:
    """What memory it was, and how much of it there is."""
    if device.type == "cpu" or isinstance(error, MemoryError) or "CPUAllocator" in str(error):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"this machine ({size_text(total)})"
    # Known without asking a device that may have no room for the question.
    gpu = torch.cuda.get_device_properties(device)
    return f"{device} ({gpu.name}, {size_text(gpu.total_memory)}; nvidia-smi shows who uses it)"
