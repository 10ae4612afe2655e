"""The GPU of these tests, and what may not happen on it."""

import warnings
from contextlib import contextmanager

import pytest
import torch

from lenstrain.training.distributed import Context

DEVICE = torch.device("cuda", 0)
ALONE = Context(device=DEVICE)
CPU = Context(device=torch.device("cpu"))

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is there"),
    # What torch's own modules warn of depends on the card and the version, not on this project.
    pytest.mark.filterwarnings("default:::torch"),
    pytest.mark.filterwarnings("default:::triton"),
]
"""For `pytestmark` of every module here."""

SLOW_CYCLES = 60_000_000
"""Of a GPU's clock, 30 to 60 ms: long beside what a host takes to queue a batch of these tests."""


def queue_slow_work():
    """Keep the stream in use busy while the host goes on."""
    torch.cuda._sleep(SLOW_CYCLES)


def set_sync_debug_mode(mode):
    """What torch does where the host waits for the device; that this is a prototype it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


@contextmanager
def no_waits():
    """Torch raises where the host waits for the device inside the block."""
    try:
        set_sync_debug_mode("error")
        yield
    finally:
        set_sync_debug_mode("default")


@contextmanager
def waits_counted():
    """Gives a list that gets one warning for each time that the host waits inside the block."""
    waits = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            set_sync_debug_mode("warn")
            yield waits
        finally:
            set_sync_debug_mode("default")
            waits += [w for w in seen if "called a synchronizing" in str(w.message)]
