"""How near the synthetic survey comes to Phase 4c: what it draws, and what pixels then show.

    python -m tests.study.priors [--rows N] [--out FILE.md]

Rows are rendered from both sets of priors and measured; the table stands in
docs/explanation/survey.md beside the figures that Phase 4c publishes. Half of the rows are lenses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lensprep.synth.hosts import draw_host
from lensprep.synth.priors import PRIORS, Priors
from lensprep.synth.rows import render_row
from lensprep.synth.survey import plan_survey

Table = dict[str, np.ndarray]
SEED = 3
APERTURES_PX = (3, 10, 12)
PUBLISHED = {
    "host g, median (mag)": "22.66",
    "host r, median (mag)": "21.17",
    "host z, median (mag)": "19.99",
    "host r - z, mean (mag)": "1.24",
    "source offset, largest (θ_E)": "0.80",
    "lens_e, mean": "0.275",
    "SIS, share (%)": "0",
    "source g - r (mag)": "0.20 ± 0.20",
    "source r - z (mag)": "0.10 ± 0.20",
    "magnification, median": "5.65",
    "magnification, mean": "8.38",
    "magnification, range": "0.074 to 318",
    "magnification < 1 (%)": "1.80",
    "magnification ≥ 5 (%)": "56",
    "flux in r, median (nmgy)": "4.62",
    "flux in r, mean (nmgy)": "7.10",
    "flux in r at θ_E 0.3, 0.6, 1.0, median (nmgy)": "4.47, 4.75, 4.65",
    "arc_snr, median": "22.9",
    "arc_snr, quartiles": "11.0, 46.5",
    "arc_snr, range": "0 to 9155",
    "arc_snr at θ_E 0.3, 0.6, 1.0, median": "26.3, 21.7, 20.7",
}


def render(priors: Priors, count: int) -> tuple[Table, np.ndarray]:
    """Columns of the rows, and fluxes (row, aperture, band) about the middle, less the sky."""
    plan = plan_survey(count, SEED)
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y)
    columns, fluxes = [], []
    for index in range(count):
        row = render_row(SEED, index, plan.brick_of(index), "train", priors)
        columns.append(row.columns)
        clear = row.pixels - np.median(row.pixels[:, radius > 25], 1)[:, None, None]
        fluxes.append([clear[:, radius < one].sum(1) for one in APERTURES_PX])
    table = {name: np.array([row[name] for row in columns]) for name in columns[0]}
    return table, np.array(fluxes)


def hosts(priors: Priors, count: int) -> dict[str, str]:
    """Magnitudes of hosts behind the dust of the survey."""
    rng, plan = np.random.default_rng(SEED), plan_survey(count, SEED)
    drawn = [draw_host(rng, plan.brick_of(index).ebv, priors) for index in range(count)]
    flux = np.array([sum(part for _, part in host.parts) for host in drawn])
    g, r, z = (22.5 - 2.5 * np.log10(flux)).T
    return {
        "host g, median (mag)": f"{np.median(g):.2f}",
        "host r, median (mag)": f"{np.median(r):.2f}",
        "host z, median (mag)": f"{np.median(z):.2f}",
        "host r - z, mean (mag)": f"{(r - z).mean():.2f}",
        "host g - r, median (mag)": f"{np.median(g - r):.2f}",
    }


def injections(table: Table) -> dict[str, str]:
    """What the columns of the lenses say."""
    lens = {name: values[table["is_control"] == 0] for name, values in table.items()}
    theta_e, e = lens["theta_e_arcsec"], lens["lens_e"]
    mu, snr, flux = (
        lens[name].astype(float) for name in ("magnification", "arc_snr", "total_injected_flux_r")
    )
    gr, rz = lens["src_gr"], lens["src_rz"]
    offset = np.hypot(lens["src_x_arcsec"], lens["src_y_arcsec"]) / theta_e
    low, middle, high = np.quantile(snr, (0.25, 0.5, 0.75))

    def by_theta_e(values: np.ndarray) -> str:
        grid = (0.3, 0.6, 1.0)
        return ", ".join(f"{np.median(values[theta_e == one]):.3g}" for one in grid)

    return {
        "source offset, largest (θ_E)": f"{offset.max():.2f}",
        "lens_e, mean": f"{e.mean():.3f}",
        "SIS, share (%)": f"{100 * (lens['lens_model'] == 'SIS').mean():.0f}",
        "source g - r (mag)": f"{gr.mean():.2f} ± {gr.std():.2f}",
        "source r - z (mag)": f"{rz.mean():.2f} ± {rz.std():.2f}",
        "magnification, median": f"{np.median(mu):.2f}",
        "magnification, mean": f"{mu.mean():.2f}",
        "magnification, range": f"{mu.min():.2g} to {mu.max():.0f}",
        "magnification < 1 (%)": f"{100 * (mu < 1).mean():.2f}",
        "magnification ≥ 5 (%)": f"{100 * (mu >= 5).mean():.0f}",
        "flux in r, median (nmgy)": f"{np.median(flux):.2f}",
        "flux in r, mean (nmgy)": f"{flux.mean():.2f}",
        "flux in r at θ_E 0.3, 0.6, 1.0, median (nmgy)": by_theta_e(flux),
        "arc_snr, median": f"{middle:.1f}",
        "arc_snr, quartiles": f"{low:.1f}, {high:.1f}",
        "arc_snr, range": f"{snr.min():.1f} to {snr.max():.0f}",
        "arc_snr at θ_E 0.3, 0.6, 1.0, median": by_theta_e(snr),
    }


def colours(fluxes: np.ndarray, is_lens: np.ndarray) -> dict[str, str]:
    """Colours of the middle, and how well its light alone tells lenses from others."""
    found = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        gr = 2.5 * np.log10(fluxes[..., 1] / fluxes[..., 0])
    for kind, mine in (("non-lenses", ~is_lens), ("lenses", is_lens)):
        medians = ", ".join(f"{one:.2f}" for one in np.nanmedian(gr[mine], 0))
        found[f"g - r within 3, 10, 12 px, {kind}, median (mag)"] = medians
    light = np.arcsinh(fluxes[:, APERTURES_PX.index(10)])
    for band, name in enumerate("grz"):
        area = roc_auc_score(is_lens, light[:, band])
        found[f"AUROC of the flux in {name} within 10 px"] = f"{area:.3f}"
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, light, is_lens, cv=5, method="decision_function")
    found["AUROC of the three together (logistic)"] = f"{roc_auc_score(is_lens, scores):.3f}"
    return found


def measure(priors: Priors, count: int) -> dict[str, str]:
    """One column of the table."""
    table, fluxes = render(priors, count)
    return hosts(priors, count) | injections(table) | colours(fluxes, table["is_control"] == 0)


def report(count: int) -> str:
    """The table of docs/explanation/survey.md."""
    found = {name: measure(priors, count) for name, priors in PRIORS.items()}
    lines = [f"| | Phase 4c | {' | '.join(f'`{name}`' for name in found)} |", "|---|---|---|---|"]
    for name in next(iter(found.values())):
        ours = " | ".join(one[name] for one in found.values())
        lines.append(f"| {name} | {PUBLISHED.get(name, '')} | {ours} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="How near the synthetic survey comes to Phase 4c.")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    text = report(options.rows)
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
