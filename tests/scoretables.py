"""Score tables for the tests: regions with offsets of their own, signal that grows with theta_E."""

import numpy as np
import pyarrow as pa


def make_table(rows=1200, regions=40, seed=0, **replaced):
    rng = np.random.default_rng(seed)
    region = np.arange(rows) % regions
    label = rng.integers(0, 2, rows)
    lens = label == 1
    theta = np.where(lens, rng.choice([0.3, 0.6, 1.0], rows), 0.0)
    psf = rng.normal(1.3, 0.1, regions)[region] + rng.normal(0, 0.01, rows)
    # Doubled, so that the probabilities are too sure and calibration has something to mend.
    logit = 2 * rng.normal(-2 + 4 * theta + rng.normal(0, 0.3, regions)[region])
    columns = {
        "key": [f"{seed:08x}{i:024x}" for i in range(rows)],
        "label": label.astype(np.int8),
        "logit": logit.astype(np.float32),
        "region_id": (region + 1000 * seed).astype(np.int32),
        "split": ["test"] * rows,
        "theta_e_arcsec": theta,
        "psfsize_r": psf,
        "psfdepth_r": rng.normal(24.5, 0.3, rows),
        "arc_snr": pa.array(np.where(lens, rng.lognormal(3, 1, rows), np.nan), from_pandas=True),
        "src_dmag": np.where(lens, rng.choice([1.0, 2.0], rows), 0.0),
        "lens_model": np.where(lens, "SIE", "CONTROL").tolist(),
    }
    columns |= replaced
    return pa.table({name: value for name, value in columns.items() if value is not None})


BARE = dict.fromkeys(
    ("theta_e_arcsec", "psfsize_r", "psfdepth_r", "arc_snr", "src_dmag", "lens_model")
)
"""Replacements that leave what every table has; its report has few figures and is fast."""


def make_mixed(simulated=1500, real=240, seed=0, regions=30, **replaced):
    """Simulated rows, which state no origin, and then real ones with kinds and grades.

    Every third real row is a lens, of grade A, B and none in turn; its logit is 3 if its number
    among the lenses is even, else -3. Non-lenses are spirals, artefacts, blank and of no kind; all
    score -4. `replaced` are columns of the real rows.
    """
    row = np.arange(real)
    lens = row % 3 == 0
    rank = row // 3
    other = np.array(["spiral", "artefact", "blank", None], object)[rank % 4]
    columns = {
        "label": lens.astype(np.int8),
        "logit": np.where(lens, np.where(rank % 2 == 0, 3.0, -3.0), -4.0).astype(np.float32),
        "lens_model": np.where(lens, "LENS", "NONLENS").tolist(),
        "origin": ["real"] * real,
        "kind": np.where(lens, "lens", other).tolist(),
        "grade": np.where(lens, np.array(["A", "B", None], object)[rank % 3], None).tolist(),
    }
    columns |= {
        name: pa.nulls(real, pa.float64()) for name in ("theta_e_arcsec", "arc_snr", "src_dmag")
    }
    theirs = make_table(rows=real, regions=20, seed=seed + 100, **(columns | replaced))
    ours = make_table(rows=simulated, seed=seed, regions=regions)
    for name in ("origin", "kind", "grade"):
        ours = ours.append_column(name, pa.nulls(simulated, pa.string()))
    return pa.concat_tables([ours, theirs.select(ours.column_names)])
