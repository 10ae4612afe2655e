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
        # TensorBoard hides what it has from this step on; the record of `step` itself stays.
        self._board: Any = SummaryWriter(
            str(folder / TENSORBOARD), purge_step=step + 1 if step else None
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
            if name != f"{kind}/step":
                self._board.add_scalar(name, value, record["step"])

    def write_settings(self, config: Config, metrics: Iterable[str]) -> None:
        """Show the configuration under HPARAMS in TensorBoard, next to some validation metrics."""
        from torch.utils.tensorboard import summary

        make: Any = summary.hparams
        settings = {
            f"{section}.{key}": value if isinstance(value, (int, float, str)) else str(value)
            for section, values in to_mapping(config).items()
            for key, value in values.items()
        }
        shown = {f"epoch/{name}": 0.0 for name in metrics}
        # The metrics are tags of scalars that `write` records: the zeros are shown nowhere.
        # add_hparams would write them, into a separate folder.
        for part in make(settings, shown):
            self._board.file_writer.add_summary(part)

    def write_validation(
        self,
        step: int,
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

        show_validation(self._board, step, dataset, split, *scores, rows)

    def flush(self) -> None:
        """Write TensorBoard's file to the disk; lines of metrics.jsonl are there already."""
        self._board.flush()

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        self._board.close()


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
