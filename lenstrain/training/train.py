"""The training program: open, train and validate epochs, keep the best, stop in time."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from lensprep.dataset import Dataset
from lensprep.errors import ProjectError, StorageError
from lensprep.store import write_atomic
from lenstrain.config import WHERE_RESOLVED, Config
from lenstrain.data import Batch, StampLoader
from lenstrain.training.checkpoint import BEST, LAST, Found
from lenstrain.training.distributed import Context, process_group
from lenstrain.training.feeding import IntervalClock, device_batches
from lenstrain.training.home import Home, find_home
from lenstrain.training.memory import enough_memory, enough_to_train
from lenstrain.training.mirror import Mirror
from lenstrain.training.pace import announce_pace, log_pace
from lenstrain.training.resume import (
    best_names,
    check_same_run,
    find_start,
    mend_names,
    merged_totals,
    restore,
    save,
)
from lenstrain.training.run import Progress, Run, build_run, start_records, tell_start
from lenstrain.training.runlog import CHECKPOINTS, INTERRUPTED, NONFINITE, Scores
from lenstrain.training.signals import StopSignals, StopWaitingError, stop_signals
from lenstrain.training.step import Learner, train_step
from lenstrain.training.validate import (
    headline_rows,
    metrics_by_origin,
    score_split,
    validation_metrics,
    validation_precision,
)

T = TypeVar("T")

_GO_ON = "Continue from the last checkpoint with --resume. (train.timeout_minutes sets the wait.)"

logger = logging.getLogger("lenstrain.train")


class NonFiniteLossError(ProjectError):
    """The loss became NaN or infinite; the rows of that batch are in a file of the run folder."""


def train(
    dataset: str,
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    announce: bool = False,
) -> dict[str, Any]:
    """Train a finder.

    Parameters
    ----------
    dataset : str
        Path or URI of a dataset.
    config : Config
    out : str or path
        The run folder: new or empty, unless `resume`. One in a store (``s3://``) is written in a
        local folder, which is removed when the run is over and all of it is in the store.
    resume : bool
        Continue from the last checkpoint of `out` if there is one. An interrupted and resumed run
        on a CPU ends with the same bits as an uninterrupted one.
    progress : callable, optional
        Called after every step, and with what the start is doing.
    announce : bool
        Log how long an epoch will take: on a CPU before the first step, measured beside the run,
        whose bits do not change; on a GPU after the second interval of the log.

    Returns
    -------
    dict
        ``status`` ("completed", "stopped" by patience, or "interrupted" by a signal), ``signal``,
        ``run``, ``best`` and ``last`` (checkpoints, where `out` is), ``epochs``, ``step``,
        ``monitor``, ``best_epoch``, ``best_value``, the last ``validation`` and ``seconds``.

    Raises
    ------
    ConfigError, DatasetError, CheckpointError, StorageError
        Before anything is written, if the input cannot be used.
    NonFiniteLossError
        If the loss is NaN or infinite. The checkpoints hold the state before.
    OutOfMemoryError
        If a batch does not fit. The checkpoints hold the state before.
    StorageError
        At the end, if `out` is in a store and that does not have all of the run.
    """
    started = time.monotonic()
    with process_group(config.train.device, config.train.timeout_minutes, _GO_ON) as context:
        with enough_to_train(config, context.device):
            run = open_run(dataset, config, out, context, resume, progress, announce)
        try:
            with stop_signals() as signals:
                try:
                    with enough_to_train(config, context.device):
                        status = fit(run, signals)
                except ProjectError:
                    send_rest(run, hurry=lambda: True, must=False)
                    raise
                if status == "interrupted" and context.is_main:
                    leave_note(run, signals)
                over = status != "interrupted"
                send_rest(run, hurry=lambda: not over or signals.received is not None, must=over)
            result = summarise(run, status, signals, time.monotonic() - started)
            if over and run.mirror is not None and run.name != str(run.folder):
                shutil.rmtree(run.folder, ignore_errors=True)
            return result
        finally:
            run.close()


def send_rest(run: Run, hurry: Callable[[], bool], must: bool) -> None:
    """Send the last state of the run to its store or second folder."""
    if run.mirror is not None and run.log is not None:
        run.log.close()
        run.mirror.finish(hurry, must=must)


def open_run(
    uri: str,
    config: Config,
    out: str | Path,
    context: Context,
    resume: bool,
    progress: Progress | None,
    announce: bool = False,
) -> Run:
    """Check everything, build everything, and only then make the run folder."""
    doing = partial(tell_start, progress, config, context)
    doing("opening the dataset")
    home = context.decide(lambda: find_home(out, config.train.checkpoint_copy))
    # The main process finds the state for all: its folder may be on a disk that it alone sees.
    again, found = context.decide(lambda: find_start(home, resume))
    dataset = Dataset.open(uri)
    if found is not None:
        check_same_run(found.content, dataset, config, home.name)
    doing("reading its columns, building the network")
    run = build_run(dataset, config, home.folder, context, progress)
    run.name = home.name
    if found is not None:
        restore(run, found.content)
    context.barrier()  # only a run that every process can make is begun
    try:
        if context.is_main:
            begin(run, home, found, new=not again)
            if announce:
                doing("measuring how long an epoch takes")
                announce_pace(run)
        doing("first step")
    except BaseException:
        run.close()
        raise
    return run


def begin(run: Run, home: Home, found: Found | None, *, new: bool) -> None:
    """Make or mend the run folder, and begin to send it; in the main process only."""
    mirror = None if home.uri is None else Mirror(home)
    if mirror is not None:
        mirror.take_place(new=new)
    if found is not None:
        mend_names(run, found)
    start_records(run)
    announce_counterfactuals(run)
    announce_mixture(run)
    announce_origins(run)
    if home.is_output:
        logger.info("%s is written to %s and sent from there", home.uri, home.folder)
    if mirror is not None:
        run.mirror = mirror
        mirror.begin(run.learner.steps)


def announce_mixture(run: Run) -> None:
    """Log what an epoch holds of each origin and rate, if there is more than one kind of row."""
    mixture = run.train_loader.composition(run.epochs_done)
    if mixture:
        logger.info(
            "an epoch has %s",
            "; ".join(
                f"{name} {part['rows']:,} ({part['share']:.1%}, {part['lenses']:,} lenses, "
                f"{part['distinct']:,} stamps)"
                for name, part in mixture.items()
            ),
        )


def announce_origins(run: Run) -> None:
    """Log whose the metrics of a validation are, if its rows are of several origins."""
    if run.origins is None:
        return
    counts = " and ".join(
        f"{np.count_nonzero(mask):,} {name}" for name, mask in run.origins.parts.items()
    )
    of = run.origins.headline
    logger.info(
        "validation has %s rows; %s",
        counts,
        "its metrics are of all together, as no origin has both classes"
        if of is None
        else f"its metrics, which choose the best epoch, are of the {of} ones",
    )


def announce_counterfactuals(run: Run) -> None:
    """Log how many counterfactuals an epoch holds, or that those of the dataset are left out."""
    there = len(run.train_loader.data.counterfactuals.rows)
    rows, of_all = run.train_loader.selection.added_rows, run.train_loader.selection.epoch_rows
    if rows:
        logger.info("an epoch has %s rows, %s of them counterfactuals", f"{of_all:,}", f"{rows:,}")
    elif there:
        logger.info(
            "the %s counterfactuals of the training split are left out; "
            "data.counterfactual_share=0.9 would train with them, best with data.where=%r, so that "
            "only lenses whose shape can be seen are learnt",
            f"{there:,}",
            WHERE_RESOLVED,
        )


def fit(run: Run, signals: StopSignals) -> str:
    """Train and validate until the epochs, the patience or the machine's time are used up.

    Returns
    -------
    str
        ``completed``, ``stopped`` or ``interrupted``.
    """
    while run.epochs_done < run.config.train.epochs:
        if run.context.from_main(run.stopper.should_stop):
            return "stopped"
        try:
            train_epoch(run, signals)
            finish_epoch(run, signals)
        except StoppedError as stopped:
            save_sound(run)
            if stopped.__cause__ is not None:
                raise stopped.__cause__ from None
            return "interrupted"
    return "completed"


class StoppedError(Exception):
    """No process has begun the next batch, and none may begin it: what is done can be saved.

    Its cause is why this process has no batch; None for a signal, or if another process has none.
    """


def train_epoch(run: Run, signals: StopSignals) -> None:
    """Train through the rest of the epoch, unless StoppedError ends it."""
    config, steps = run.config, len(run.train_loader)
    done = run.learner.steps - run.epochs_done * steps
    clock = IntervalClock()
    batches = device_batches(breakable(run.train_loader, signals), run, clock)
    numbers = range(done + 1, steps + 1)
    for number, batch in zip(numbers, together(batches, run, signals), strict=False):
        train_step(run.learner, batch, run.totals, config, run.context)
        clock.steps += 1
        at_interval = run.learner.steps % config.train.log_every == 0
        record = log_interval(run, clock) if at_interval else {}
        run.tell("train", number, steps, config.data.batch_size, record)
        if number < steps and checkpoint_due(run, at_interval):
            save_sound(run)


def save_sound(run: Run) -> None:
    """Save within an epoch, unless a loss was not finite."""
    check_finite(run, merged_totals(run, run.totals))
    save(run, [])


def breakable(loader: StampLoader, signals: StopSignals) -> Iterator[Batch]:
    """Batches; a signal ends the wait for one that does not come."""
    with signals.breakable():
        batches = iter(loader)
    while True:
        with signals.breakable():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def together(batches: Iterator[T], run: Run, signals: StopSignals) -> Iterator[T]:
    """Batches, as long as every process has its own and none is to stop.

    They agree before each batch: a process without data would keep the others waiting in their
    step, where nothing can be saved. They do so over gloo, which does not wait for the devices.
    StoppedError comes in every process.
    """
    while True:
        batch: T | None = None
        reason: StorageError | None = None
        try:
            batch = next(batches, None)
            stop = signals.received is not None
        except StopWaitingError:
            stop = True
        except StorageError as error:
            stop, reason = True, error
        if run.context.any(stop):
            raise StoppedError from reason
        if batch is None:
            return
        yield batch


def checkpoint_due(run: Run, at_interval: bool) -> bool:
    """Whether the last checkpoint is too old, by the clock of the main process.

    Several processes ask at intervals of the log only.
    """
    if run.context.grouped and not at_interval:
        return False
    minutes = run.config.train.checkpoint_minutes
    due = minutes > 0 and time.monotonic() - run.saved_at > 60 * minutes
    return run.context.any(due and run.context.is_main)


def finish_epoch(run: Run, signals: StopSignals) -> None:
    """Validate, remember what is best, log, save.

    A run that StoppedError ends during this validation resumes at its start.
    """
    close_interval(run)
    started = time.perf_counter()
    scores = validate(run, signals)
    # Computed once: every process derives what is best and when to stop from the same numbers.
    judged = (*scores, run.config.eval.fpr, run.counterfactuals)
    run.metrics = run.context.from_main(
        validation_metrics(*judged, run.origins) if run.context.is_main else {}
    )
    improved = run.stopper.update(run.epochs_done + 1, run.metrics)
    record = epoch_record(run, time.perf_counter() - started)
    if run.log is not None:
        mixture = run.train_loader.composition(run.epochs_done)
        apart = None if run.origins is None else metrics_by_origin(*judged, run.origins)
        sections = {"mixture": mixture, "origins": apart}
        run.log.write("epoch", record | {name: of for name, of in sections.items() if of})
        if run.config.train.pictures:
            with suppress(StopWaitingError), signals.breakable():  # they are read from the dataset
                mask = headline_rows(run.counterfactuals, run.origins)
                rows = None if mask is None else np.flatnonzero(mask)
                when = run.learner.steps, run.epochs_done + 1
                run.log.write_validation(*when, run.dataset, run.config.eval.split, scores, rows)
    run.tell("epoch", len(run.train_loader), len(run.train_loader), 0, record)
    run.epoch_totals.sums.zero_()
    run.epochs_done += 1
    run.train_loader.set_epoch(run.epochs_done)
    save(run, best_names(improved, run.stopper.monitor))


def epoch_record(run: Run, seconds: float) -> dict[str, Any]:
    """The line of an epoch in metrics.jsonl; every process must come here."""
    sums = merged_totals(run, run.epoch_totals)
    monitor = run.stopper.monitor
    return {
        "step": run.learner.steps,
        "epoch": run.epochs_done + 1,
        "train_loss": sums["loss"] / max(sums["weight"], 1),
        **run.metrics,
        f"best_{monitor}": run.stopper.best.get(monitor),
        "epochs_without_gain": run.stopper.waited,
        "validation_seconds": seconds,
    }


def validate(run: Run, signals: StopSignals) -> Scores:
    """Logits and labels of all rows of the validation split, with the averaged weights if any."""
    config, steps = run.config, len(run.val_loader)

    def watched() -> Iterator[Batch]:
        batches = together(breakable(run.val_loader, signals), run, signals)
        for number, batch in enumerate(batches, 1):
            yield batch
            run.tell("validate", number, steps, config.eval.batch_size, {})

    synchronise_buffers(run)
    doing = f"Validating with eval.batch_size={config.eval.batch_size}"
    enough = enough_memory(doing, run.context.device, "Set eval.batch_size lower.")
    network: Any = run.learner.network
    if isinstance(network, DistributedDataParallel):
        network = network.module  # every process scores its own rows: there is nothing to exchange
    with enough, scoring_weights(run.learner):
        return score_split(
            network,  # compiled, if the run compiles: one more graph, for all validations
            watched(),
            run.dataset.split(config.eval.split).rows,
            run.context,
            channels_last=config.train.channels_last,
            precision=validation_precision(config, run.learner.amp_dtype, run.context.device),
        )


def log_interval(run: Run, clock: IntervalClock) -> dict[str, Any]:
    """Read the totals from the device (the one wait of an interval), check and log them."""
    sums = close_interval(run)
    seconds, waited, steps = clock.restart()
    updates = max(sums["updates"], 1)
    record: dict[str, Any] = {
        "step": run.learner.steps,
        "epoch": run.epochs_done + 1,
        "loss": sums["loss"] / max(sums["weight"], 1),
        "lr": float(run.learner.optimizer.param_groups[0]["lr"]),
        "grad_norm": sums["norm"] / updates,
        "clipped_share": sums["clipped"] / updates,
        "skipped_updates": sums["steps"] - sums["updates"],
        "samples_per_s": steps * run.config.data.batch_size / seconds,
        "data_wait_share": waited / seconds,
    }
    if run.learner.scaler.is_enabled():
        record["loss_scale"] = run.learner.scaler.get_scale()
    if run.context.device.type == "cuda":
        record["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if run.log is not None:
        run.log.write("interval", record)
    if run.untold_intervals:
        run.untold_intervals -= 1
        if not run.untold_intervals:
            log_pace(run, record["samples_per_s"])
    return record


def close_interval(run: Run) -> dict[str, float]:
    """Sums since the last reading, over all processes, which are added to the epoch's."""
    sums = merged_totals(run, run.totals)
    check_finite(run, sums)
    run.epoch_totals.sums += run.totals.sums
    run.totals.sums.zero_()
    return sums


def check_finite(run: Run, sums: dict[str, float]) -> None:
    """Save the rows of the first bad batch and raise, if a loss was not finite in any process."""
    if not sums["nonfinite"]:
        return
    rows = [index for index in run.context.gather(run.totals.bad_index).tolist() if index >= 0]
    path = run.folder / NONFINITE
    if run.context.is_main:
        write_atomic(path, json.dumps(describe_rows(run.dataset, rows), indent=1).encode())
    raise NonFiniteLossError(
        f"The loss became NaN or infinite within the last {run.config.train.log_every} of "
        f"{run.learner.steps} steps. The rows of that batch are listed in {path}, and the "
        "checkpoints hold the state before. Check the dataset with `lensprep verify`, or lower "
        "optim.lr."
    )


def leave_note(run: Run, signals: StopSignals) -> None:
    """Record in the run folder that a signal stopped the run, for `lenstrain monitor`."""
    # None if another process got the signal.
    name = None if signals.received is None else signal.Signals(signals.received).name
    note = {"signal": name, "step": run.learner.steps}
    write_atomic(run.folder / INTERRUPTED, json.dumps(note).encode())


def describe_rows(dataset: Dataset, rows: list[int]) -> dict[str, Any]:
    """Keys of training rows, and whether their stored pixels are finite."""
    unique = sorted(set(rows))
    pixels = torch.from_numpy(dataset.read_pixels("train", unique))
    finite = torch.isfinite(pixels).flatten(1).all(1).tolist()
    keys = dataset.read_sidecar("train", ["key"])["key"].to_pylist()
    found = zip(unique, finite, strict=True)
    return {
        "split": "train",
        "rows": [{"index": i, "key": keys[i], "finite_pixels": ok} for i, ok in found],
    }


@contextmanager
def scoring_weights(learner: Learner) -> Iterator[None]:
    """Put the model in evaluation mode, with the averaged weights if there are any."""
    model, average = learner.model, learner.average
    kept = None
    if average is not None:
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(average.state)
    model.eval()
    try:
        yield
    finally:
        model.train()
        if kept is not None:
            model.load_state_dict(kept)


def synchronise_buffers(run: Run) -> None:
    """Give all processes the batch statistics of the first, so that all score with one network."""
    if run.context.world_size == 1:
        return
    average = run.learner.average
    for name, buffer in run.learner.model.named_buffers():
        torch.distributed.broadcast(buffer, 0)
        if average is not None:
            torch.distributed.broadcast(average.state[name], 0)


def summarise(run: Run, status: str, signals: StopSignals, seconds: float) -> dict[str, Any]:
    """What `train` returns; see there."""
    monitor, folder = run.stopper.monitor, f"{run.name}/{CHECKPOINTS}"
    return {
        "status": status,
        "signal": signals.received,
        "run": run.name,
        "best": f"{folder}/{BEST}" if (run.checkpoints / BEST).exists() else None,
        "last": f"{folder}/{LAST}" if (run.checkpoints / LAST).exists() else None,
        "epochs": run.epochs_done,
        "step": run.learner.steps,
        "monitor": monitor,
        "best_epoch": run.stopper.best_epoch.get(monitor),
        "best_value": run.stopper.best.get(monitor),
        "validation": dict(run.metrics),
        "seconds": seconds,
    }
