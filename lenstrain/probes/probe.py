"""The function behind `lenstrain probe`: a checkpoint and a dataset in; probe.json, a page out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset, Geometry, NormalizationSpec
from lensprep.dataset.strictjson import plain
from lensprep.errors import CheckpointError
from lensprep.store import Uri, check_folder, join_uri, written_folder
from lenstrain.figures import Plot
from lenstrain.networks.weights import require_geometry, trained_geometry
from lenstrain.pages import number, percent, render
from lenstrain.pages.files import PagePlot, save_plot
from lenstrain.pages.links import links_to, name_of, pages_of, run_of
from lenstrain.pages.page import PROBE_NAME, PROBE_PAGE, bounds
from lenstrain.pages.places import add_link
from lenstrain.probes import figures
from lenstrain.probes.adding import (
    measure_flux_matched,
    measure_null_injection,
    measure_rings,
)
from lenstrain.probes.attention import Attention, measure_attention
from lenstrain.probes.judge import RULES, ProbeThresholds, judge, rule
from lenstrain.probes.looking import (
    Baseline,
    measure_arc_removal,
    measure_baseline,
    measure_d4,
    measure_linear,
    measure_views,
)
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.possible import impossible
from lenstrain.probes.profiles import measure_lead
from lenstrain.probes.radii import annulus_px, core_px, why_no_core
from lenstrain.probes.sample import Sample, draw_sample, find_partners
from lenstrain.probes.scoring import BATCH, Scorer
from lenstrain.probes.words import FIGURES, MEANINGS, TITLES, readings, stamps
from lenstrain.scoring.origins import spell
from lenstrain.training.checkpoint import load_finder, versions
from lenstrain.training.distributed import choose_device
from lenstrain.training.memory import enough_memory

FORMAT_VERSION = 1
MARKS = ("FAILED", "does not tell", "passed", "reported", "not run")
"""Results of probes, what is to be looked at first."""

_LESS = (
    "Set per_class, injections, baseline_rows, attribution or resamples lower, or choose --device "
    "cpu."
)

Progress = Callable[[str, float], None]
"""Called with the name of the stage that begins and the share of the work done before it."""


def probe(
    checkpoint: Uri,
    dataset: Uri,
    out: Uri | None = None,
    *,
    options: ProbeOptions | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run all probes and write them.

    Parameters
    ----------
    checkpoint : str or path
        This and all other locations may be local or s3://.
    dataset : str or path
        Of the normalisation that the checkpoint was trained with.
    out : str or path, optional
        Folder to write; ``probe`` in the run folder of the checkpoint if not given. Earlier probes
        there are replaced whole; any other non-empty folder is refused.
    options : ProbeOptions, optional
    device : {"auto", "cpu", "cuda"}
    progress : callable, optional

    Returns
    -------
    dict
        The content of probe.json, with ``report`` (path of the page) added.

    Raises
    ------
    CheckpointError
        If the checkpoint is unusable or was trained with another normalisation.
    DatasetError
        If the split has not both classes.
    OutOfMemoryError
        If the stamps that `options` asks for do not fit.
    StorageError
        If `out` holds other files, or cannot be written; raised before the work.
    """
    options = options or ProbeOptions()
    tell = progress or (lambda stage, done: None)
    out = default_folder(checkpoint) if out is None else out
    check_folder(out, PROBE_NAME)
    tell("Drawing stamps", 0.0)
    chosen = choose_device(device)
    with enough_memory(f"Probing {BATCH} stamps at a time", chosen, _LESS):
        model, meta, sha256 = load_finder(checkpoint, chosen)
        data = Dataset.open(dataset)
        trained = trained_geometry(meta, str(checkpoint))
        require_geometry(trained, data.geometry, str(checkpoint), data.uri)
        _check_normalization(meta, data, str(checkpoint))
        sample = draw_sample(data, options.split, options.per_class, options.seed)
        scorer = Scorer(model, chosen)
        base = measure_baseline(sample, scorer, options)
        partners = find_partners(data, sample)
        probes, attention = measure(base, scorer, options, tell, partners)
        tell("Light profiles", 0.85)
        probes["baseline"] = measure_lead(data, scorer, options)
    geometry = data.manifest.geometry
    content: dict[str, Any] = plain(
        {
            "format_version": FORMAT_VERSION,
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": sha256,
            "dataset": data.uri,
            "dataset_id": data.dataset_id,
            "normalization": data.manifest.normalization.to_dict(),
            "geometry": geometry.to_dict(),
            "radii_px": _radii(geometry, options),
            "split": options.split,
            "counterfactual_share": meta["config"].get("data", {}).get("counterfactual_share", 0.0),
            "sample": _describe(base),
            "threshold": {
                "fpr": options.fpr,
                "logit": base.threshold,
                "flagged": base.flagged_controls,
                "upper": base.upper_fpr,
            },
            "probes": probes,
            "not_run": impossible(sample, options),
            "options": asdict(options),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    content["readings"] = readings(content)
    content["judged"] = judged(content["probes"])
    pages = pages_of(run_of(checkpoint), sha256)
    tell("Writing", 0.95)
    with written_folder(out, PROBE_NAME) as draft:
        write(draft, content, attention, links_to(pages, out))
    add_link(pages.get("report"), "Probe", join_uri(out, PROBE_PAGE))
    tell("Done", 1.0)
    return content | {"report": join_uri(out, PROBE_PAGE)}


def measure(
    base: Baseline,
    scorer: Scorer,
    options: ProbeOptions,
    tell: Progress,
    partners: tuple[NDArray[np.int64], Sample],
) -> tuple[dict[str, Any], Attention]:
    """Run the probes; one that the sample does not allow (`impossible`) is None."""
    tell("Taking content away", 0.1)
    left_out = impossible(base.sample, options)
    probes: dict[str, Any] = dict.fromkeys(left_out) | measure_views(base, scorer, options)
    tell("Logistic regressions", 0.4)
    probes |= measure_linear(base.sample, options)
    tell("Rotating", 0.5)
    probes["d4"] = measure_d4(base, scorer)
    tell("Adding light", 0.65)
    adding: dict[str, Callable[[], dict[str, Any]]] = {
        "arc_removal": lambda: measure_arc_removal(base, scorer, options, partners),
        "null_injection": lambda: measure_null_injection(base, scorer, options),
        "flux_matched_null": lambda: measure_flux_matched(base, scorer, options),
        "ring_probe": lambda: measure_rings(base, scorer, options),
    }
    probes |= {name: run() for name, run in adding.items() if name not in left_out}
    tell("Drawing maps", 0.75)
    attention = measure_attention(base, scorer, options)
    probes["attribution"] = attention.entry
    return probes, attention


def default_folder(checkpoint: Uri) -> str:
    """Where the probes of a checkpoint go: ``RUN/probe``, or ``probe`` next to a loose file."""
    return join_uri(run_of(checkpoint), "probe")


def judged(probes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Whether each probe that has a rule is passed (None if it was not run, or does not tell)."""
    limits, found = ProbeThresholds(), {}
    for name in RULES:
        entry = probes.get(name)
        what = None if entry is None or "reason" in entry else judge(name, entry, limits)
        found[name] = {"passed": what and what.passed, "rule": rule(name, limits),
                       "note": what.note if what else ""}  # fmt: skip
    return found


def write(out: Path, content: dict[str, Any], attention: Attention, links: dict[str, str]) -> None:
    """Write probe.json, the figures and the page, with links to other pages of the run."""
    (out / "figures").mkdir()
    pictures = [save_plot(plot, out / "figures") for plot in _plots(content, attention)]
    page = render("probe.html", _page(content, pictures, links))
    (out / PROBE_PAGE).write_text(page, encoding="utf-8")
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (out / PROBE_NAME).write_text(text, encoding="utf-8")


def _plots(content: dict[str, Any], attention: Attention) -> list[Plot]:
    probes = content["probes"]
    drawn = [figures.draw_views(probes), figures.draw_scores(probes)]
    if "lead" in probes["baseline"]:
        drawn.append(figures.draw_lead(probes["baseline"]))
    if probes["flux_matched_null"] is not None:
        fpr = content["threshold"]["fpr"]
        drawn.append(
            figures.draw_injections(probes["flux_matched_null"], probes["ring_probe"], fpr)
        )
    drawn.append(figures.draw_d4(probes["d4"].pop("changes"), probes["d4"]["logit_sd"]))
    drawn.append(figures.draw_attention(attention))
    return drawn


def _page(
    content: dict[str, Any], pictures: list[PagePlot], links: dict[str, str]
) -> dict[str, Any]:
    rows = [_row(content, name) for name in TITLES]
    count = Counter(row["mark"] for row in rows)
    provenance = [
        ("Checkpoint", content["checkpoint"]),
        ("SHA-256", content["checkpoint_sha256"]),
        ("Dataset", content["dataset"]),
        ("Dataset id", content["dataset_id"]),
        ("Created", content["created"]),
    ]
    return {"p": content, "run": name_of(run_of(content["checkpoint"])), "rows": rows,
            "count": count, "figures": pictures, "tiles": _tiles(content["probes"]),
            "links": links | {f"#{plot.name}": f"#{plot.name}" for plot in pictures},
            "provenance": provenance}  # fmt: skip


def marked(content: dict[str, Any], name: str) -> str:
    """The result of a probe in a word or two: one of `MARKS`."""
    verdict = content["judged"].get(name)
    if verdict is not None and verdict["passed"] is not None:
        return "passed" if verdict["passed"] else "FAILED"
    if stamps(content, name) is None:
        return "not run"
    return "reported" if verdict is None else "does not tell"


def _row(content: dict[str, Any], name: str) -> dict[str, Any]:
    """A probe as the page shows it."""
    verdict = content["judged"].get(name, {"rule": "", "note": ""})
    used, mark = stamps(content, name), marked(content, name)
    shown = [f"#{FIGURES[name]}"] if name in FIGURES else []
    if name == "baseline" and content["counterfactual_share"]:
        shown.append("report#counterfactuals")
    return {
        "name": name,
        "title": TITLES[name],
        "mark": mark,
        "css": {"passed": "passed", "FAILED": "failed"}.get(mark, "none"),
        "severity": "",
        "context": "" if used is None else f"{used:,} stamps. ",
        "rule": verdict["rule"],
        "remedy": "",
        "meaning": MEANINGS[name],
        "figures": shown,
        "text": f"{content['readings'][name]} {verdict['note']}".strip(),
    }


def _tiles(probes: dict[str, Any]) -> list[dict[str, str]]:
    masked = probes["core_mask"]
    tiles = [
        _tile("AUROC, stamps as they are", probes["original"]["auroc"]),
        *([_tile("AUROC, core masked", masked["auroc"])] if masked else []),
        _tile("AUROC, rings shuffled", probes["brightness_view"]["auroc"]),
    ]
    if "lead" in probes["baseline"]:
        lead = probes["baseline"]["lead"]["auroc"]
        tiles.append(_tile("Lead over light profiles, AUROC", lead))
    flux = probes["flux_matched_null"]
    if flux is not None:
        note = f"{percent(flux['base_rate'])} before"
        value = percent(flux["pass_rate"])
        tiles.append({"name": "Unlensed sources flagged", "value": value, "note": note})
    crossing = percent(probes["d4"]["crossing_share"])
    note = f"logit moves by {number(probes['d4']['mean_abs_change'], 2)}"
    tiles.append({"name": "Decided by orientation", "value": crossing, "note": note})
    return tiles


def _tile(name: str, entry: dict[str, Any]) -> dict[str, str]:
    note = "" if entry["low"] is None else bounds(entry)
    return {"name": name, "value": number(entry["value"]), "note": note}


def _radii(geometry: Geometry, options: ProbeOptions) -> dict[str, Any]:
    """The radii that were used, pixels; ``core`` is None where a stamp is too small for it."""
    core = None if why_no_core(geometry, options) else core_px(geometry, options)
    return {"core": core, "sky_annulus": annulus_px(geometry, options)}


def _describe(base: Baseline) -> dict[str, Any]:
    labels = base.sample.labels
    return {
        "lenses": int((labels == 1).sum()),
        "non_lenses": int((labels == 0).sum()),
        "bright": int(base.bright.sum()),
        "regions": len(np.unique(base.sample.regions)),
    }


def _check_normalization(meta: dict[str, Any], data: Dataset, path: str) -> None:
    stored = data.manifest.normalization.to_dict()
    if dict(meta["normalization"]) != stored:
        raise CheckpointError(
            f"{path} was trained on pixels of normalisation "
            f"{spell(NormalizationSpec.from_dict(meta['normalization']))}, but {data.uri} holds "
            f"{spell(data.manifest.normalization)}. Probe it on the dataset it was trained on."
        )
