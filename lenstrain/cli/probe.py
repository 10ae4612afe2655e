"""`lenstrain probe`: what a network looks at."""

from __future__ import annotations

import click

from lensprep.configfile import load_config
from lensprep.terminal import LOCATION, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import device_option, json_option, report, set_option


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.argument("dataset", type=LOCATION)
@click.option(
    "--out",
    type=LOCATION,
    help="Folder for the results  [default: probe in the run folder].",
)
@device_option
@set_option("Override an option of the probes, such as per_class=500.")
@s3_variables
@json_option
def probe(
    checkpoint: str,
    dataset: str,
    out: str | None,
    device: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Probe CHECKPOINT for shortcuts on stamps of DATASET.

    \b
    Example:
      lenstrain probe runs/a/checkpoints/best.pt data/ds
    """
    from lenstrain.probes.options import ProbeOptions

    options = load_config(ProbeOptions, None, overrides)
    from lenstrain.cli.progress import share_progress
    from lenstrain.probes.probe import MARKS, marked
    from lenstrain.probes.probe import probe as run_probes

    with share_progress() as progress:
        result = run_probes(
            checkpoint, dataset, out, options=options, device=device, progress=progress
        )
    table = TextTable("result", "probe", "reading", left=("probe",), prose="reading")
    marks = {name: marked(result, name) for name in result["readings"]}
    for name in sorted(marks, key=lambda name: MARKS.index(marks[name])):
        table.add(marks[name], name, result["readings"][name])
    report(result, [table, f"Report: {result['report']}"], as_json)
