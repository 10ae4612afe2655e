"""The command `lensprep`; each of its commands is a module in this folder, and a line here."""

from __future__ import annotations

import os

# Read by pyarrow's allocator when it is loaded, here and in the workers. By default it would return
# the memory of each batch of blobs to the system and take it again for the next one, which costs a
# tenth of conversion.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")
# Read by the C library when the workers start: otherwise each thread that talks to an object store
# would keep a separate heap.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

import click

from lensprep import __version__
from lensprep.cli.bench import bench
from lensprep.cli.check import check
from lensprep.cli.convert import convert
from lensprep.cli.counterfactual import counterfactual
from lensprep.cli.doctor import doctor
from lensprep.cli.inspect import inspect
from lensprep.cli.survey import survey
from lensprep.cli.synth import synth
from lensprep.cli.transfer import download, upload
from lensprep.cli.verify import verify
from lensprep.terminal import ProjectGroup, log_lines


@click.group(
    cls=ProjectGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="lensprep")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Turn Phase 4c parquet into shards that are both WebDataset tars and arrays.

    The usual way: check the source, convert it, verify the result and look at it.

    \b
    lensprep check    PHASE4C
    lensprep convert  PHASE4C DATASET
    lensprep verify   DATASET --against PHASE4C
    lensprep inspect  DATASET --montage stamps.png
    """
    ctx.with_resource(log_lines())


for command in (
    synth, check, counterfactual, convert, verify, upload, download, inspect, survey, bench, doctor,
):  # fmt: skip
    main.add_command(command)
