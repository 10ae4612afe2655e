"""`lenstrain export`: a finder for others."""

from __future__ import annotations

from typing import Any

import click
from rich.console import RenderableType

from lensprep.errors import count_text, size_text
from lensprep.terminal import LOCATION, Location, s3_variables
from lensprep.texttable import TextTable
from lenstrain.cli.options import json_option, report


@click.command()
@click.argument("checkpoint", type=LOCATION)
@click.option(
    "--out",
    multiple=True,
    type=Location(".safetensors", ".onnx", ".pt2"),
    help="File to write; the suffix is the format: .safetensors, .onnx or .pt2. Repeatable.",
)
@click.option("--check", type=LOCATION, help="Compare this exported file, and write nothing.")
@click.option(
    "--report",
    "report_folder",
    type=LOCATION,
    help="Report of this checkpoint by `lenstrain evaluate`, whose calibration to build in.",
)
@click.option(
    "--dataset",
    type=LOCATION,
    help="Dataset to compare on  [default: that of the training, if it is there].",
)
@click.option(
    "--source",
    multiple=True,
    type=LOCATION,
    help="Tree that the dataset was converted from: compare on raw stamps. Name each of them.",
)
@click.option("--split", default="test", show_default=True, help="Split to compare on.")
@click.option(
    "--rows", type=click.IntRange(min=1), help="Stamps to draw at random  [default: all]."
)
@s3_variables
@json_option
def export(
    checkpoint: str,
    out: tuple[str, ...],
    check: str | None,
    report_folder: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write CHECKPOINT as files that others run on raw stamps, and prove that they are the same.

    Normalisation and calibration are inside: flux goes in, the logit and a probability come out.
    Each file is read back and compared with CHECKPOINT; one that differs is not left behind.

    \b
    Example:
      lenstrain export runs/a/checkpoints/best.pt --report report --out finder.onnx
    """
    if bool(out) == (check is not None):
        raise click.UsageError("Give --out, once or more, or --check.")
    from lenstrain.cli.progress import stage_progress
    from lenstrain.export import export as run_export

    with stage_progress("comparing") as progress:
        result = run_export(
            checkpoint, out, check=check, report=report_folder, progress=progress, **options
        )
    report(result, _lines(result), as_json)


def _lines(result: dict[str, Any]) -> list[str | RenderableType]:
    from lenstrain.export import FLUX_WORDS

    table = TextTable(
        "file", "format", "size", "logit", "probability", "run by",
        left=("file", "format", "run by"), prose="file",
    )  # fmt: skip
    for file in result["files"]:
        table.add(
            file["path"], file["format"], size_text(file["bytes"]),
            _far(file["largest_logit_difference"]), _far(file["largest_probability_difference"]),
            f"{file['runtime']} {file['version']}",
        )  # fmt: skip
    lines: list[str | RenderableType] = [table]
    if result["dataset"] is not None:
        stamps = count_text(result["files"][0]["rows"], "stamp")
        lines.append(
            f"Largest differences from {result['checkpoint']} on {stamps} of {result['split']} of "
            f"{result['dataset']}, {FLUX_WORDS[result['flux']]}."
        )
    calibration, tta = result["calibration"], result["tta"]
    if calibration is None:
        lines.append(
            "The probabilities are not calibrated: they are the sigmoid of the logit. --report "
            "names a report with a calibration, `lenstrain evaluate --calibrate-on`."
        )
    else:
        lines.append(f"The probabilities are calibrated ({calibration['kind']}).")
    if tta:
        lines.append("The logit is the mean over the 8 rotations and flips, as in the report.")
    return [*lines, *result["notes"]]


def _far(difference: float | None) -> str:
    return "not compared" if difference is None else f"{difference:.1e}"
