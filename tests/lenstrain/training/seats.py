"""What each of two processes does in `test_gpus`: join the other, seeing GPUs that are not there.

    torchrun ... -m tests.lenstrain.training.seats FOLDER

Torch's answers about GPUs are given, and gloo stands for NCCL; the start by torchrun, the store in
which the processes meet, and their decision are real.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist

from lensprep.errors import ConfigError
from lenstrain.training.distributed import process_group

RANK = int(os.environ["RANK"])
SEEN = (
    (["x"], ["y"]),  # CUDA_VISIBLE_DEVICES of each names another
    (["x", "y"], ["x", "y"]),
    (["x"], ["x"]),
    (["x"], []),
)
"""What the two processes see, in one group after the other."""


def join(seen):
    """Device of this process among those that joined, or why it did not."""
    usual = dist.init_process_group

    def over_gloo(backend, **named):
        return usual("gloo", **(named | {"device_id": None}))

    answers = {
        "is_available": lambda: bool(seen),
        "device_count": lambda: len(seen),
        "get_device_capability": lambda device: (9, 0),
        "set_device": lambda device: None,
        "get_device_properties": lambda device: SimpleNamespace(uuid=seen[device.index]),
    }
    with (
        mock.patch.multiple(torch.cuda, **answers),
        mock.patch.object(dist, "init_process_group", over_gloo),
    ):
        try:
            with process_group("auto", 1.0) as context:
                return f"{context.device} of {context.gather_objects(context.rank)}"
        except ConfigError as error:
            return str(error)


def main():
    """Join in one group after the other, each with keys of its own in the store."""
    lines = []
    for number, seen in enumerate(SEEN):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        lines.append(join(seen[RANK]))
    (Path(sys.argv[1]) / str(RANK)).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
