"""Score tables with families of counterfactuals whose truth a test knows."""

import numpy as np
import pyarrow as pa

KINDS = ("unlensed", "magnified", "extended", "companion", "lensed")
BY_FLUX = "flux"
BY_SHAPE = "shape"
RESOLVED = "resolved"
"""What a finder sees: the flux alone, lensing, or lensing where theta_E / PSF is 0.5 or more."""


def add_families(table, finder, families=300, seed=0, kinds=KINDS, theta=None):
    """The table of `tests.scoretables.make_table` and, mixed among its rows, families of its rows.

    The host of a family is a non-lens of the table and its donor a lens. A finder that sees flux
    alone gives every member the donor's logit and noise of its own; one that sees lensing gives all
    but the lensed one the host's.
    """
    rng = np.random.default_rng([seed, families])
    label, logit, theta_e = (table[n].to_numpy() for n in ("label", "logit", "theta_e_arcsec"))
    host = rng.choice(np.flatnonzero(label == 0), families)
    lens = label == 1 if theta is None else theta_e == theta
    donor = rng.choice(np.flatnonzero(lens), families)
    parts = []
    for number, kind in enumerate(kinds):
        is_lens = kind == "lensed"
        part = table.take(pa.array(host))
        seen = np.full(families, finder == BY_SHAPE)
        if finder == RESOLVED:
            seen = theta_e[donor] >= 0.5 * part["psfsize_r"].to_numpy()
        light = logit[donor] + rng.normal(0, 0.1, families)
        other = np.where(seen, np.minimum(logit[host], light - 1), light)
        columns = {
            "key": [f"{number + 1:x}{seed:07x}{i:024x}" for i in range(families)],
            "label": np.full(families, is_lens, np.int8),
            "logit": (light if is_lens else other).astype(np.float32),
            "counterfactual": [kind] * families,
            "host_task_id": [f"task-{i}" for i in host],
            "donor_task_id": [f"task-{i}" for i in donor],
        }
        if is_lens:
            names = ("theta_e_arcsec", "arc_snr", "src_dmag", "lens_model")
            columns |= {name: table[name].take(pa.array(donor)) for name in names}
        for name, column in columns.items():
            if name in part.column_names:
                if not isinstance(column, pa.ChunkedArray):
                    column = pa.array(column, part[name].type)
                part = part.set_column(part.column_names.index(name), name, column)
            else:
                part = part.append_column(name, pa.array(column, pa.string()))
        parts.append(part)
    for name in ("counterfactual", "host_task_id", "donor_task_id"):
        table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    everything = pa.concat_tables([table, *parts])
    # Mixed, but the other rows keep their order: every figure of theirs must stay the same.
    place = np.concatenate([np.arange(table.num_rows) * 1.0,
                            rng.uniform(0, table.num_rows, len(parts) * families)])  # fmt: skip
    return everything.take(pa.array(np.argsort(place, kind="stable")))
