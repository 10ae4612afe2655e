"""Train with and without counterfactuals under several normalisations; print what each learnt.

    python -m tests.study.shortcuts SRC COUNTERFACTUALS --out DIR [--modes M,M] [--ways W,W]
        [--share R] [--seeds N,N] [--jobs N] [--limit ROWS] [--seen ROWS] [--set KEY=VALUE]

Both trees become one dataset for each normalisation. A finder learns ``without`` counterfactuals,
``with`` them, or with them and from the lenses alone whose shape can be seen (``resolved``). Each
learns from as many ordinary rows and sees as many rows in all: with counterfactuals, fewer epochs.
It is trained, scored on val and test, evaluated with thresholds from val, and probed. What is
finished is kept: a second call goes on where the first one stopped, and prints the table of all
that is there. Cells are means over seeds and half their range.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lensprep.configfile import load_config
from lensprep.convert import ConvertConfig, convert
from lensprep.dataset.layout import COUNTERFACTUAL
from lenstrain.config import WHERE_RESOLVED, Config
from lenstrain.evaluation.counterfactuals import RATIO_EDGES
from lenstrain.evaluation.metrics import auroc, roc_curve
from lenstrain.evaluation.options import EvaluationOptions
from lenstrain.pages.evaluate import evaluate
from lenstrain.probes.options import ProbeOptions
from lenstrain.probes.probe import probe
from lenstrain.scoring.infer import infer
from lenstrain.training.train import train

CONFIG = Path(__file__).parents[2] / "configs" / "demo.toml"
BRIGHT_SNR = 20.0
PROBES = ProbeOptions(
    per_class=1500, resamples=100, attribution=2, baseline_train_rows=1000,
    baseline_rows=1000,
)  # fmt: skip
EVALUATION = EvaluationOptions(resamples=200)
RESOLVED = f"data.where={WHERE_RESOLVED}"
WAYS = ("without", "with", "resolved")
RATIOS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, np.inf))


@dataclass(frozen=True)
class Arm:
    """One finder."""

    out: Path
    mode: str
    way: str
    share: float
    seed: int
    limit: int
    """Ordinary rows of train that it learns from."""
    seen: int
    """Rows that it sees in all epochs together."""
    settings: tuple[str, ...]

    @property
    def epochs(self) -> int:
        return max(1, round(self.seen * (1 - self.share) / self.limit))

    @property
    def folder(self) -> Path:
        return self.out / f"{self.mode}-{self.way}-seed{self.seed}"

    @property
    def dataset(self) -> Path:
        return self.out / self.mode


def run_arm(arm: Arm) -> None:
    """Train, score, evaluate and probe a finder, unless that is done."""
    done = arm.folder / "figures.json"
    if done.exists():
        return
    settings = (
        f"data.counterfactual_share={arm.share}", f"data.limit={arm.limit}",
        f"train.epochs={arm.epochs}", f"train.seed={arm.seed}",
        *([RESOLVED] if arm.way == "resolved" else []), *arm.settings,
    )  # fmt: skip
    run = arm.folder / "run"
    train(str(arm.dataset), load_config(Config, CONFIG, settings), run, resume=run.exists())
    checkpoint = run / "checkpoints" / "best.pt"
    for split in ("val", "test"):
        infer(str(checkpoint), arm.dataset, split=split, out=arm.folder / f"{split}.parquet")
    result = evaluate(
        arm.folder / "test.parquet",
        arm.folder / "report",
        calibrate_on=arm.folder / "val.parquet",
        options=EVALUATION,
    )
    probed = probe(checkpoint, arm.dataset, arm.folder / "probe", options=PROBES)
    figures = figures_of(result, probed, pq.read_table(arm.folder / "test.parquet"))
    done.write_text(json.dumps(figures, indent=2))


def figures_of(result: dict[str, Any], probed: dict[str, Any], scores: pa.Table) -> dict[str, Any]:
    """What the table shows of one finder."""
    found = result["counterfactuals"]
    ordinary = scores.filter(scores[COUNTERFACTUAL].is_null())
    logits, labels = (ordinary[name].to_numpy() for name in ("logit", "label"))
    theta, psf, snr = (
        ordinary[name].cast(pa.float64()).to_numpy()
        for name in ("theta_e_arcsec", "psfsize_r", "arc_snr")
    )
    ratio, flagged = theta / psf, logits > found["threshold"]

    def complete(among: np.ndarray) -> float:
        return float(flagged[among].mean())

    def area(low: float, high: float) -> float:
        chosen = (labels == 0) | ((ratio >= low) & (ratio < high))
        return auroc(roc_curve(labels[chosen], logits[chosen]))

    lens = labels == 1
    bright = lens & (snr > BRIGHT_SNR)
    probes = probed["probes"]
    pairs = found["pairs"]
    return {
        "auroc": result["auroc"]["value"],
        "fpr_upper": found["fpr_upper"],
        **{f"pass_{kind}": entry["pass_rate"]["value"] for kind, entry in found["kinds"].items()},
        "complete": complete(lens),
        "complete_resolved": complete(bright & (ratio >= 0.75)),
        "complete_unresolved": complete(bright & (ratio < 0.5)),
        **{f"auroc_{low:g}_{high:g}": area(low, high) for low, high in RATIOS},
        "pairs": pairs["auroc"]["value"],
        **{f"pairs_{kind}": entry["value"] for kind, entry in pairs["by_kind"].items()},
        **{f"across_{kind}": entry["value"] for kind, entry in pairs["across_by_kind"].items()},
        **{
            f"across_{kind}_{cell['lo']:g}": entry["value"]
            for cell in pairs["by_theta_e_over_psf"]
            for kind, entry in cell["across_by_kind"].items()
        },
        "pairs_by_theta_e": pairs["by_theta_e"],
        "limit": pairs["limit"],
        "annulus_only": probes["annulus_only"]["auroc"]["value"],
        "brightness_only": probes["brightness_only"]["value"],
        "shuffled_rings": probes["brightness_view"]["auroc"]["value"],
        "flux_matched": probes["flux_matched_null"]["pass_rate"],
    }


ROWS: tuple[tuple[str, str], ...] = (
    ("AUROC, all lenses", "auroc"),
    *((f"AUROC, θ_E / PSF {low:g} to {high:g}", f"auroc_{low:g}_{high:g}") for low, high in RATIOS),
    ("FPR, upper limit", "fpr_upper"),
    ("completeness, all lenses", "complete"),
    ("completeness, resolved, arc_snr > 20", "complete_resolved"),
    ("completeness, unresolved, arc_snr > 20", "complete_unresolved"),
    *(
        (f"pass rate, {kind}", f"pass_{kind}")
        for kind in ("unlensed", "magnified", "extended", "scattered", "companion", "lensed")
    ),
    ("AUROC within pairs, all", "pairs"),
    *(
        (f"AUROC within pairs, {kind}", f"pairs_{kind}")
        for kind in ("unlensed", "magnified", "extended", "scattered", "companion")
    ),
    *(
        (f"AUROC across families, {kind}, θ_E / PSF {low:g} to {high:g}", f"across_{kind}_{low:g}")
        for kind in ("unlensed", "extended")
        for low, high in pairwise(RATIO_EDGES[:-1])  # beyond are few
    ),
    ("probe: annulus only", "annulus_only"),
    ("probe: brightness only", "brightness_only"),
    ("probe: rings shuffled", "shuffled_rings"),
    ("probe: unlensed points pass", "flux_matched"),
)


def table(arms: Sequence[Arm]) -> Iterator[str]:
    """Lines of a Markdown table of all finished finders."""
    columns: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in arms:
        file = arm.folder / "figures.json"
        if file.exists():
            columns.setdefault((arm.mode, arm.way), []).append(json.loads(file.read_text()))
    heads = [f"{mode}, {way} ({len(found)})" for (mode, way), found in columns.items()]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    read: Callable[[dict[str, Any], str], float] = lambda found, key: float(found[key])  # noqa: E731
    for title, key in ROWS:
        cells = []
        for found in columns.values():
            values = [read(one, key) for one in found]
            cells.append(f"{np.mean(values):.3f} ± {np.ptp(values) / 2:.3f}")
        yield f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("src")
    parser.add_argument("counterfactuals")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--modes", default="mad_stamp,mad_annulus,asinh_survey")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=12_000)
    parser.add_argument("--seen", type=int, default=120_000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    arms = [
        Arm(
            options.out,
            mode,
            way,
            0.0 if way == "without" else options.share,
            int(seed),
            options.limit,
            options.seen,
            tuple(options.settings),
        )
        for seed in options.seeds.split(",")
        for way in options.ways.split(",")
        for mode in options.modes.split(",")
    ]
    for mode in options.modes.split(","):
        if not (options.out / mode / "manifest.json").exists():
            sources = [options.src, options.counterfactuals]
            convert(sources, str(options.out / mode), ConvertConfig(normalize=mode))
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for _ in pool.map(run_arm, arms):
            pass
    print("\n".join(table(arms)))


if __name__ == "__main__":
    main()
