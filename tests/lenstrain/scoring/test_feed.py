"""The process that decodes: what is said when it ends before its time."""

import os
import signal
from pathlib import Path

import pytest

from lensprep.errors import InputError
from lenstrain.scoring.feed import feeding


def children():
    threads = Path("/proc/self/task").iterdir()
    return {int(pid) for each in threads for pid in (each / "children").read_text().split()}


def test_a_decoder_that_was_killed_is_not_told_as_what_it_said_before():
    before = children()
    with feeding({}) as answers:
        (decoder,) = children() - before
        os.kill(decoder, signal.SIGKILL)
        with pytest.raises(InputError, match=r"was killed \(SIGKILL: out of memory\?\)"):
            next(answers)
