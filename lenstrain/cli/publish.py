"""`lenstrain publish`: one folder with all that a finder is."""

from __future__ import annotations

from typing import Any

import click

from lensprep.configfile import load_config
from lensprep.errors import count_text, size_text
from lensprep.terminal import LOCATION, s3_variables
from lenstrain.cli.options import json_option, report, set_option


@click.command()
@click.argument("run", type=LOCATION, required=False)
@click.argument("dataset", type=LOCATION, required=False)
@click.argument("evaluation", metavar="[REPORT]", type=LOCATION, required=False)
@click.option(
    "--out",
    required=True,
    type=LOCATION,
    help="The folder; an earlier publication there is replaced.",
)
@click.option(
    "--about", "about_path", type=LOCATION, help="TOML file of title, licence, authors, ..."
)
@set_option("One entry of that file, such as license=CC-BY-4.0.")
@click.option("--scores", type=LOCATION, help="Scores that REPORT was made from, if moved since.")
@click.option(
    "--calibration-scores",
    type=LOCATION,
    help="Scores that REPORT was calibrated on, if moved since.",
)
@click.option(
    "--source",
    multiple=True,
    type=LOCATION,
    help="Tree that DATASET was converted from, to compare the exported files on its own stamps. "
    "Repeatable.",
)
@click.option("--draft", is_flag=True, help="Write a run that is not fit too, and say so.")
@click.option(
    "--check",
    is_flag=True,
    help="Compare every byte of the folder with its digest and score its sample again; without "
    "RUN, DATASET and REPORT nothing is written.",
)
@click.option("--digest", help="With --check: SHA-256 of SHA256SUMS, as it was quoted elsewhere.")
@s3_variables
@json_option
def publish(
    run: str | None,
    dataset: str | None,
    evaluation: str | None,
    out: str,
    about_path: str | None,
    overrides: tuple[str, ...],
    check: bool,
    digest: str | None,
    as_json: bool,
    **named: Any,
) -> None:
    """Publish RUN, trained on DATASET and evaluated in REPORT, as one folder; or check one.

    The folder holds cards, weights in three formats, scores, completeness, the report, Croissant
    and RO-Crate metadata, a sample of stamps, and the digest of every file. What is not fit to be
    published is refused: a test split opened twice, code that was not committed, figures that do
    not follow from the scores, no licence.

    \b
    Example:
      lenstrain publish runs/a data/ds report --about about.toml --out published
      lenstrain publish --check --out published
    """
    from lenstrain.cli.progress import share_progress

    result: dict[str, Any] = {}
    lines: list[Any] = []
    if digest is not None and not check:
        raise click.UsageError("--digest needs --check.")
    if evaluation is None:
        if run is not None or not check:
            raise click.UsageError("Give RUN, DATASET and REPORT, or --check alone.")
    else:
        from lenstrain.publish.facts import About
        from lenstrain.publish.publish import publish as run_publish

        about = load_config(About, about_path, overrides)
        with share_progress() as progress:
            result = run_publish(
                str(run), str(dataset), evaluation, out, about=about, progress=progress, **named
            )
        lines += _written_lines(result)
    if check:
        from lenstrain.publish.verify import check_publication

        found = check_publication(out, digest)
        result["check"] = found
        lines += _checked_lines(found)
    report(result, lines, as_json)


def _written_lines(result: dict[str, Any]) -> list[str]:
    faults = [f"DRAFT, not fit to be published: {fault}" for fault in result["faults"]]
    weights = [
        f"{made['path']}: {size_text(made['bytes'])}, logits within "
        f"{made['largest_logit_difference']:.2g} of the checkpoint's on {made['rows']:,} stamps of "
        f"test ({made['flux']})"
        for made in result["weights"]
    ]
    return [
        *faults,
        *weights,
        f"{count_text(result['files'], 'file')}, {size_text(result['bytes'])}; SHA-256 of "
        f"SHA256SUMS, which stands for all: {result['sums_sha256']}",
        f"{'Draft' if faults else 'Published'}: {result['out']}; its front page is index.html",
    ]


def _checked_lines(found: dict[str, Any]) -> list[str]:
    worst = max(found["largest_difference"].values())
    draft = [f"It is a draft: {fault}" for fault in found["faults"]]
    return [
        *draft,
        f"Checked: {count_text(found['files'], 'file')} as published (SHA-256 of SHA256SUMS "
        f"{found['sums_sha256']}); {found['rows']:,} stamps scored again in every format, logits "
        f"within {worst:.2g}",
    ]
