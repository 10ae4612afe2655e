"""What each of several processes does in `test_distributed`, in one start by torchrun.

    torchrun ... -m tests.lenstrain.training.ranks DATASET CONFIG FOLDER TASK...

Every process leaves ``TASK-RANK.json`` in the folder.
"""

import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest import mock

import torch

from lensprep.configfile import load_config
from lensprep.dataset import Dataset
from lensprep.errors import StorageError
from lenstrain.config import Config
from lenstrain.data import StampLoader
from lenstrain.networks.finder import build_model
from lenstrain.training import train as program
from lenstrain.training.distributed import process_group
from lenstrain.training.stopping import Stopper
from lenstrain.training.validate import score_split

RANK = int(os.environ["RANK"])


def scores(dataset, config, folder, context):
    """The validation split, by a network with the weights of the seed; as bits of each logit."""
    torch.manual_seed(5)
    model = build_model(config.model).eval()
    loader = StampLoader(
        dataset, "val", 18 // context.world_size, shuffle=None,
        rank=context.rank, world_size=context.world_size,
    )  # fmt: skip
    rows = Dataset.open(dataset).split("val").rows
    logits, labels = score_split(model, loader, rows, context)
    return {"logits": logits.tolist(), "labels": labels.tolist()}


def resumed(dataset, config, folder, context):
    """A straight run, and one that is told to stop in its fifth step and goes on."""
    config = replace(config, model=replace(config.model, norm="batch", dropout=0.2))
    seen = iter(range(100))

    def progress(event):
        if event.stage == "train" and next(seen) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    program.train(dataset, config, folder / "straight")
    cut = program.train(dataset, config, folder / "cut", progress=progress)
    whole = program.train(dataset, config, folder / "cut", resume=True)
    return {"cut": [cut["status"], cut["step"]], "whole": [whole["status"], whole["step"]]}


def stop(dataset, config, folder, context):
    """A run out of patience after two epochs; process 1 alone would go on for ever."""
    config = replace(
        config,
        optim=replace(config.optim, lr=1e-12, min_lr=1e-13, weight_decay=0.0),
        train=replace(config.train, epochs=9, patience=1),
    )
    never = mock.patch.object(Stopper, "should_stop", property(lambda self: False))
    other = mock.patch.object(program, "validation_metrics", side_effect=AssertionError)
    if RANK:
        with never, other:
            return program.train(dataset, config, folder / "stop")
    return program.train(dataset, config, folder / "stop")


def state(dataset, config, folder, context):
    """Process 1 has a disk of its own, with nothing of the run on it."""
    out = folder / "cut" if RANK == 0 else folder / "elsewhere"
    config = replace(config, model=replace(config.model, norm="batch", dropout=0.2))
    found = program.train(dataset, config, out, resume=True)
    return {"step": found["step"], "run": found["run"], "made": (folder / "elsewhere").exists()}


def refused(dataset, config, folder, context):
    """What the main process finds of the run folder is told by all, and none waits."""
    try:
        return program.train(dataset, config, folder / "cut")
    except StorageError as error:
        return {"error": str(error)}


def three_batches(then):
    """Have the loader of process 1 give three batches of its first epoch, and then do this."""
    usual = StampLoader.__iter__

    def some(loader):
        yield from islice(usual(loader), 3)
        then()

    return mock.patch.object(StampLoader, "__iter__", some) if RANK else nullcontext()


def away(dataset, config, folder, context):
    """The data of process 1 do not come any more, and it alone is told to stop."""

    def wait():
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(100)

    with three_batches(wait):
        return program.train(dataset, config, folder / "away")


def unreadable(dataset, config, folder, context):
    """The data of process 1 cannot be read."""

    def give_up():
        raise StorageError("the store of process 1 is gone")

    try:
        with three_batches(give_up):
            return program.train(dataset, config, folder / "unreadable")
    except StorageError as error:
        return {"error": str(error)}


def fail(dataset, config, folder, context):
    """Process 1 meets an error of its own in the fourth step."""
    step, steps = program.train_step, iter(range(1000))

    def failing(*args, **kwargs):
        if RANK == 1 and next(steps) == 3:
            raise ZeroDivisionError("an error of process 1")
        return step(*args, **kwargs)

    with mock.patch.object(program, "train_step", failing):
        return program.train(dataset, config, folder / "fail")


def memory(dataset, config, folder, context):
    """Process 1 asks for more memory than any machine has, in its tenth step."""
    step, steps = program.train_step, iter(range(1000))

    def greedy(*args, **kwargs):
        if RANK == 1 and next(steps) == 9:
            torch.empty(10**15)
        return step(*args, **kwargs)

    with mock.patch.object(program, "train_step", greedy):
        return program.train(dataset, config, folder / "memory")


def main():
    """Do the tasks one after the other, in one group: processes cannot be joined twice."""
    dataset, config_path, folder, *tasks = sys.argv[1:]
    config = load_config(Config, Path(config_path))
    with process_group("cpu", config.train.timeout_minutes) as context:
        joined = mock.patch.object(program, "process_group", return_value=nullcontext(context))
        with joined:
            for task in tasks:
                found = globals()[task](dataset, config, Path(folder), context)
                (Path(folder) / f"{task}-{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
