"""The command `lenstrain`; each of its commands is a module next to this one and one line here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from lensprep.terminal import ProjectGroup, log_lines
from lenstrain import __version__
from lenstrain.cli.audit import audit
from lenstrain.cli.bench import bench
from lenstrain.cli.cache import cache
from lenstrain.cli.compare import compare
from lenstrain.cli.config import config
from lenstrain.cli.doctor import doctor
from lenstrain.cli.evaluate import evaluate
from lenstrain.cli.export import export
from lenstrain.cli.generalize import generalize
from lenstrain.cli.infer import infer
from lenstrain.cli.mine import mine
from lenstrain.cli.monitor import monitor
from lenstrain.cli.probe import probe
from lenstrain.cli.publish import publish
from lenstrain.cli.sweep import sweep
from lenstrain.cli.train import train


@click.group(
    cls=ProjectGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="lenstrain")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train, score and evaluate gravitational-lens finders on lensprep datasets.

    The usual way: train a finder, score two splits, evaluate, and ask what it has learnt.

    \b
    lenstrain train     DATASET --config resnet18 --out runs/a
    lenstrain infer     runs/a/checkpoints/best.pt DATASET --split val --out val.parquet
    lenstrain infer     runs/a/checkpoints/best.pt DATASET --split test --out test.parquet
    lenstrain evaluate  test.parquet --calibrate-on val.parquet --out report
    lenstrain probe     runs/a/checkpoints/best.pt DATASET
    lenstrain audit     runs/a DATASET
    lenstrain export    runs/a/checkpoints/best.pt --report report --out finder.onnx
    lenstrain publish   runs/a DATASET report --about about.toml --out published
    """
    # Read when torch is first imported. Threads that spin while they wait make a small network
    # on a busy machine 2 to 5 times slower (two cores, load 7, three runs of each).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ctx.with_resource(warnings_in_one_line())
    ctx.with_resource(log_lines())


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show the project's own warnings as one line; Python's are shown as usual."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if category is UserWarning:
            click.echo(f"Warning: {message}", err=True)
        else:
            usual(message, category, *rest, **named)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


for command in (
    train, monitor, infer, evaluate, compare, mine, probe, audit, export, publish, sweep,
    generalize, bench, cache, config, doctor,
):  # fmt: skip
    main.add_command(command)
