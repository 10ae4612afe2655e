"""What a run leaves to be read: configuration, environment, metrics, TensorBoard events."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lensprep.configfile import to_mapping, to_toml
from lensprep.dataset import Dataset
from lensprep.dataset.strictjson import plain
from lensprep.store import write_atomic
from lenstrain.config import Config
from lenstrain.evaluation import metrics
from lenstrain.training.checkpoint import git_commit, versions

Scores = tuple[NDArray[np.float32], NDArray[np.int8]]
"""Logits and labels of a split, in its order."""

CHECKPOINTS = "checkpoints"
METRICS_FILE = "metrics.jsonl"
CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
TENSORBOARD = "tensorboard"
NONFINITE = "nonfinite.json"
"""Rows of the batch whose loss was not finite, if that ended the run."""
INTERRUPTED = "interrupted.json"
"""Signal and step at which the run ended, until it is resumed."""

_NUMBERS = {
    "loss": "Mean training loss of the interval, with smoothing and augmentation.",
    "train_loss": "Mean training loss of the epoch, with smoothing and augmentation.",
    "lr": "Learning rate.",
    "grad_norm": "Mean norm of the gradients before they are clipped.",
    "clipped_share": "Share of the steps whose gradients were scaled down to `optim.clip_norm`.",
    "skipped_updates": "Steps that fp16 skipped because a gradient was not finite.",
    "loss_scale": "Scale of the loss in fp16.",
    "samples_per_s": "Stamps trained on per second, over all processes.",
    "data_wait_share": "Share of the time that the step waited for data; near 0 is good.",
    "gpu_memory_gib": "Most GPU memory used so far, in GiB.",
    "epochs_without_gain": "Epochs since the best; at `train.patience` the run stops.",
    "validation_seconds": "Time that the validation took.",
    "rows": "Rows in the epoch.",
    "share": "Share of the epoch's rows.",
    "lenses": "Lenses among them.",
    "distinct": "Distinct stamps among them.",
    "n": "Rows that were validated on.",
    "tpr": "Completeness at the threshold of the headline rows.",
    "fpr": "False-positive rate at the threshold of the headline rows.",
}
"""What the numbers of a record are that are no metrics."""
_MORE = {
    "tpr_at_fpr": " The rate is `eval.fpr`.",
    "nll": " With counterfactuals it may rise without harm; `lenstrain evaluate` calibrates.",
    "pair_auroc": " Share of pairs of a lens and the same light, not lensed, on the same host, in "
    "which the lens scores higher.",
    "counterfactual_pass": " Share of counterfactuals, which are no lenses, above the threshold of "
    "`tpr_at_fpr`.",
}
"""What else is to be known of a metric."""
_CHARTS = {
    "Learning": {
        "Loss: training, and NLL of the validation": [
            "Multiline", ["epoch/train_loss", "epoch/nll"]
        ],
        "Ranking of the validation": ["Multiline", ["epoch/auroc", "epoch/average_precision"]],
    },
    "Machine": {
        "Share of the time that a step waits for data": ["Multiline", ["interval/data_wait_share"]],
    },
}  # fmt: skip


class RunLog:
    """Writes the records of a run, in its main process only.

    Parameters
    ----------
    folder : Path
        The run folder.
    step, epochs : int
        Step that the run starts from, and epochs finished by then. Later records, left by an
        interrupted run, are dropped.
    """

    def __init__(self, folder: Path, step: int = 0, epochs: int = 0) -> None:
        # Importing TensorBoard takes a second, which only the process that writes should pay.
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / METRICS_FILE
        truncate_metrics(self.path, step, epochs)
        self._file = self.path.open("a", encoding="utf-8")
        # TensorBoard hides what it has from this step on; the record of `step` itself stays. A
        # fresh run says so too: one of its readers takes the first such mark for a mere start.
        self._board: Any = SummaryWriter(
            str(folder / TENSORBOARD), purge_step=step + 1 if step else 0
        )

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and its numbers to TensorBoard as ``kind/name``.

        Those of a section, which may hold others, are ``kind/section/name`` there.

        Parameters
        ----------
        kind : {"interval", "epoch"}
        record : dict
            Has ``step``; numbers that are not finite become null.
        """
        values = plain(record)
        self._file.write(json.dumps({"kind": kind, **values}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in _numbers(values, kind):
            if name not in (f"{kind}/step", f"{kind}/epoch"):
                self._add_scalar(name, value, record["step"])

    def _add_scalar(self, tag: str, value: float, step: int) -> None:
        # Both import TensorBoard, as `__init__` does.
        from torch.utils.tensorboard import summary

        from lenstrain.training.board import annotate

        make: Any = summary.scalar
        made = annotate(make(tag, value), scalar_description(tag))
        self._board.file_writer.add_summary(made, step)

    def write_settings(self, config: Config, names: Iterable[str]) -> None:
        """Show the configuration under HPARAMS in TensorBoard, next to some validation metrics.

        CUSTOM SCALARS shows training and validation in one chart.
        """
        from torch.utils.tensorboard import summary

        make: Any = summary.hparams
        settings = {
            f"{section}.{key}": value if isinstance(value, (int, float, str)) else str(value)
            for section, values in to_mapping(config).items()
            for key, value in values.items()
        }
        shown = {f"epoch/{name}": 0.0 for name in names}
        # The metrics are tags of scalars that `write` records: the zeros are shown nowhere.
        # add_hparams would write them, into a separate folder.
        for part in make(settings, shown):
            self._board.file_writer.add_summary(part)
        self._board.add_custom_scalars(_CHARTS)

    def write_validation(
        self,
        step: int,
        epoch: int,
        dataset: Dataset,
        split: str,
        scores: Scores,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """Show a validation in TensorBoard: PR curve, reliability, the hardest stamps.

        `rows` are those that count, if not all of the split.
        """
        # Matplotlib takes a second to import, which only the process that draws should pay.
        from lenstrain.training.pictures import show_validation

        show_validation(self._board, step, epoch, dataset, split, *scores, rows)

    def flush(self) -> None:
        """Write TensorBoard's file to the disk; lines of metrics.jsonl are there already."""
        self._board.flush()

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        self._board.close()


def scalar_description(tag: str) -> str:
    """What a number in TensorBoard is; its parts are the kind of record, sections, and its name."""
    _, *sections, name = tag.split("/")
    of = f" Of {' '.join(sections)} rows." if sections else ""
    every = (*metrics.METRICS, *metrics.COUNTERFACTUAL_METRICS)
    found = next((metric for metric in every if metric.name == name.removeprefix("best_")), None)
    if found is not None:
        best = "Best so far. " if name.startswith("best_") else ""
        better = "higher" if found.higher_is_better else "lower"
        more = _MORE.get(found.name, "")
        return f"{best}{found.title}, of the validation split; {better} is better.{more}{of}"
    return _NUMBERS.get(name, "") + of


def _numbers(values: dict[str, Any], above: str) -> Iterator[tuple[str, float]]:
    """Numbers of nested sections, each with its path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{above}/{name}")
        elif isinstance(value, (int, float)):
            yield f"{above}/{name}", value


def truncate_metrics(path: Path, step: int, epochs: int) -> None:
    """Drop the records after a step, those of unfinished epochs, and an incomplete last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        finished = record["kind"] != "epoch" or record["epoch"] <= epochs
        if record["step"] <= step and finished:
            kept.append(line)
    write_atomic(path, "".join(line + "\n" for line in kept).encode())


def write_setup(folder: Path, config: Config, facts: dict[str, Any]) -> None:
    """Write the resolved configuration and, with `facts` of the run, the environment."""
    write_atomic(folder / CONFIG, to_toml(config).encode())
    environment = {**facts, **environment_facts()}
    write_atomic(folder / ENVIRONMENT, (json.dumps(environment, indent=2) + "\n").encode())


def environment_facts() -> dict[str, Any]:
    """Machine and software that a result or a speed depends on."""
    facts: dict[str, Any] = {
        "host": platform.node(),
        "process": os.getpid(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        cudnn: Any = torch.backends.cudnn
        facts["cudnn"] = cudnn.version()
    return facts
