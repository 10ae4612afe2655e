"""Checks of the dataset: its columns, rejects, labels, splits and duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.checks.finding import (
    farthest_share,
    in_several,
    leaking,
    positions_in_both,
    separations,
)
from lensprep.dataset.layout import COUNTERFACTUAL, CUTOUT_LABELS
from lensprep.dataset.where import compile_where
from lensprep.tables.positions import read_positions
from lenstrain.audit.config import AuditConfig
from lenstrain.audit.evidence import Evidence
from lenstrain.audit.finding import NotRunError, Outcome
from lenstrain.audit.leaks import norm_stats
from lenstrain.pages.page import listed

REQUIRED = ("key", "label", "region_id", "lens_model", "theta_e_arcsec")
"""Columns without which, and without `norm_stats`, labels and leaks cannot be checked."""

Sky = NDArray[np.float64]


def check_schema(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Columns and types are the same in every sidecar, and none that is needed is missing."""
    types: dict[str, set[str]] = {}
    faults: list[str] = []
    required = (*REQUIRED, *norm_stats(evidence.geometry))
    sidecars = groups = 0
    for split in evidence.splits:
        for shard in evidence.dataset.split(split).shards:
            footer = evidence.dataset.sidecar_footer(shard)
            sidecars, groups = sidecars + 1, groups + footer.num_row_groups
            schema = footer.schema.to_arrow_schema()
            names = set(schema.names)
            faults += [f"{shard.sidecar} lacks {name}" for name in required if name not in names]
            for column in schema:
                types.setdefault(column.name, set()).add(str(column.type))
    faults += [f"{name} is {' and '.join(sorted(t))}" for name, t in types.items() if len(t) > 1]
    return Outcome(
        passed=not faults,
        measured={"sidecars": sidecars, "row_groups": groups, "columns": len(types),
                  "faults": len(faults)},
        threshold="no fault in any row group",
        detail=f"{'; '.join(faults[:3])}{_and_more(len(faults) - 3)}." if faults
        else "Every sidecar has the same columns with the same types.",
    )  # fmt: skip


def _and_more(count: int) -> str:
    return f"; and {count:,} more" if count > 0 else ""


def check_reject_rate(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Rows that the conversion rejected, by reason and class, from its account.

    Counterfactuals are left out: they are made from sound rows, and would hide the others' rejects.
    """
    account = evidence.dataset.manifest.account
    if not account.get("input_rows"):
        raise NotRunError("The manifest has no account: the dataset was not made by a conversion.")
    limits = config.data
    made = [classes.get(COUNTERFACTUAL, {}) for classes in account.get("splits", {}).values()]
    rows = account["input_rows"] - sum(entry.get("input_rows", 0) for entry in made)
    rejected, filtered = (
        Counter(account[kind]) - sum((Counter(entry.get(kind)) for entry in made), Counter())
        for kind in ("rejected", "filtered")
    )
    rate = rejected.total() / max(1, rows)
    by_class = _class_rates(account)
    gap = max(by_class.values(), default=0.0) - min(by_class.values(), default=0.0)
    blocking = rate > limits.blocking_reject_rate
    passed = rate <= limits.max_reject_rate and gap <= limits.max_class_gap
    reasons = ", ".join(f"{name} {n}" for name, n in rejected.items())
    return Outcome(
        passed=passed,
        measured={"rate": rate, "class_gap": gap, "by_class": by_class,
                  "reasons": dict(rejected), "filtered": dict(filtered)},
        threshold={"rate": limits.max_reject_rate, "class_gap": limits.max_class_gap,
                   "blocking": limits.blocking_reject_rate},
        severity="blocker" if blocking else "warn",
        detail=f"{rate:.3%} of {rows:,} rows were rejected ({reasons}); the "
        f"classes differ by {100 * gap:.3f} percentage points."
        if rejected else f"None of {rows:,} rows was rejected.",
    )  # fmt: skip


def _class_rates(account: Mapping[str, Any]) -> dict[str, float]:
    rows = {"0": 0, "1": 0}
    rejected = {"0": 0, "1": 0}
    for classes in account.get("splits", {}).values():
        for label in set(rows) & set(classes):
            rows[label] += classes[label]["input_rows"]
            rejected[label] += sum(classes[label]["rejected"].values())
    return {label: rejected[label] / n for label, n in rows.items() if n}


def check_label_consistency(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Label against lens model, and against control flag and Einstein radius where known."""
    label_map = evidence.dataset.manifest.label_map
    extra = ["is_control"] if "is_control" in evidence.columns else []
    names = ["label", "lens_model", "theta_e_arcsec", *extra]
    table = evidence.all_sidecars(names, everything=True)
    label = table["label"].to_numpy()
    expected = [label_map.get(str(name), -1) for name in table["lens_model"].to_pylist()]
    control = table["is_control"].to_numpy() == 1 if extra else label == 0
    wrong = {
        "lens_model": np.array(expected) != label,
        "theta_e_arcsec": (table["theta_e_arcsec"].to_numpy() > 0) != (label == 1),
        "is_control": control != (label == 0),
    }
    models = table["lens_model"].cast(pa.string())
    cutout = pc.is_in(models, value_set=pa.array(list(CUTOUT_LABELS))).to_numpy()
    for name in ("theta_e_arcsec", *extra):  # nobody measured these of an object in the sky
        wrong[name] &= ~(cutout & table[name].is_null(nan_is_null=True).to_numpy())
    conflicts = {name: int(np.count_nonzero(rows)) for name, rows in wrong.items()}
    total = sum(conflicts.values())
    return Outcome(
        passed=total == 0,
        measured=conflicts,
        threshold=0,
        detail=f"{total:,} labels contradict the columns they come from."
        if total
        else "Every label agrees with lens_model, is_control and theta_e_arcsec.",
    )


def check_both_classes(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Rows of each class in each split, counted in the sidecars; counterfactuals make no class."""
    counts, wrong = {}, []
    for split in evidence.splits:
        label = evidence.sidecar(split, ["label"], everything=True)["label"].to_numpy()
        ordinary = label[evidence.rows_of(split)]
        counts[split] = {str(k): int((ordinary == k).sum()) for k in (0, 1)}
        stated = evidence.dataset.split(split).classes
        if any(int((label == k).sum()) != stated.get(str(k), 0) for k in (0, 1)):
            wrong.append(f"{split} has other counts than the manifest states")
        wrong += [f"{split} has no rows of class {k}" for k, n in counts[split].items() if n == 0]
    wrong += [f"there is no {name}" for name in ("train", "val", "test") if name not in counts]
    return Outcome(
        passed=not wrong,
        measured=counts,
        threshold="> 0 each",
        detail="; ".join(wrong) + "." if wrong else "Every split has lenses and non-lenses.",
    )


def check_split_disjoint(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Regions, bricks and galaxies in two splits, and the nearest pair of stamps across splits."""
    shared = {"region_id": _shared(evidence, "region_id")}
    if "brickname" in evidence.columns:
        shared["brickname"] = _shared(evidence, "brickname")
    limit = config.data.min_separation_arcsec
    if limit is None:
        limit = round(evidence.geometry.diagonal_arcsec, 1)
    if not {"ra", "dec"} <= set(evidence.columns):
        if not any(shared.values()):
            raise NotRunError(
                "The sidecars have no ra and dec, so it is not known whether splits share sky."
            )
        nearest: dict[str, float] = {}
        close = 0
    else:
        nearest, close = separations({s: _positions(evidence, s) for s in evidence.splits}, limit)
    bad = [f"{n} values of {name} are in two splits" for name, n in shared.items() if n]
    if close:
        bad.append(f"{close} stamps share sky with one of another split")
    far = min(nearest.values(), default=0.0)
    apart = f"{far:,.0f} arcsec" if far < 3600 else f"{far / 3600:,.1f} degrees"
    return Outcome(
        passed=not bad,
        measured={"shared": shared, "nearest_arcsec": nearest, "close_positions": close},
        threshold={"shared": 0, "nearest_arcsec": limit},
        detail="; ".join(bad) + "." if bad
        else "No region or brick is in two splits" + (
            f"; the nearest stamps of two splits are {apart} apart."
            if nearest else "; no two splits have positions to compare."),
    )  # fmt: skip


def _shared(evidence: Evidence, column: str) -> int:
    tables = (evidence.sidecar(split, [column], everything=True) for split in evidence.splits)
    # Nobody states the brick of a cutout: null is no value that splits could share.
    known = (table[column].drop_null().unique().to_pylist() for table in tables)
    values = ([str(value) for value in found] for found in known)
    return len(in_several(values))


def _positions(evidence: Evidence, split: str) -> Sky:
    sky, known, _ = _sky(evidence, split, everything=True)
    return np.unique(sky[known], axis=0)


def _sky(
    evidence: Evidence, split: str, *columns: str, everything: bool = False
) -> tuple[Sky, NDArray[np.bool_], pa.Table]:
    """Positions of a split, which of them are known, and further columns; as `Evidence.sidecar`.

    A position that is not on the sky is a ScoresError: distances to it would be wrong.
    """
    names = [name for name in ("key", "ra", "dec", *columns) if name in evidence.columns]
    table = evidence.sidecar(split, names, everything=everything)
    where = f"{evidence.dataset.uri}: the sidecars of {split}"
    ra, dec = read_positions(table, where, unknown=True)
    return np.stack([ra, dec], 1), ~np.isnan(ra), table


def check_duplicates(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Equal pixels in two splits or with two labels, and how many distinct images there are.

    A counterfactual must not be in another split than its like, nor have another's key. Light that
    is too faint to change a pixel may give it the pixels of a stamp of the other label.
    """
    labels, hashes, images, keys = [], [], [], []
    for split in evidence.splits:
        table = evidence.sidecar(split, ["pixel_hash", "label", "key"], everything=True)
        ordinary = evidence.rows_of(split)
        hashes.append(hash_numbers(table["pixel_hash"].to_pylist()))
        images.append(hashes[-1][ordinary])
        labels.append(table["label"].to_numpy()[ordinary])
        keys += table["key"].to_pylist()
    image, label = np.concatenate(images), np.concatenate(labels)
    across_splits = len(in_several(hashes))
    across_labels = len(in_several(image[label == k] for k in np.unique(label)))
    repeated_keys = len(keys) - len(set(keys))
    unique = {str(k): len(np.unique(image[label == k])) for k in (0, 1)}
    bad = bool(across_splits or across_labels or repeated_keys)
    return Outcome(
        passed=not bad,
        measured={"rows": len(image), "unique": unique, "across_splits": across_splits,
                  "across_labels": across_labels, "repeated_keys": repeated_keys},
        threshold={"across_splits": 0, "across_labels": 0, "repeated_keys": 0},
        detail=(f"{across_splits:,} images are in two splits, {across_labels:,} have both labels, "
                f"{repeated_keys:,} keys are duplicates." if bad
                else "No image is in two splits or has both labels, and no key comes twice.")
        + f" {len(image):,} rows are {unique['0']:,} distinct non-lenses and {unique['1']:,} "
        "distinct lenses.",
    )  # fmt: skip


def hash_numbers(hashes: list[str]) -> NDArray[np.uint64]:
    """First 64 bits of hexadecimal hashes."""
    joined = bytes.fromhex("".join(text[:16] for text in hashes))
    return np.frombuffer(joined, "<u8")


def check_split_fractions(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Shares of rows against those that the user declared."""
    limits = config.data
    stated = {"train": limits.train_fraction, "val": limits.val_fraction,
              "test": limits.test_fraction}  # fmt: skip
    declared = {name: value for name, value in stated.items() if value is not None}
    rows = {split: len(evidence.rows_of(split)) for split in evidence.splits}
    shares = {split: n / sum(rows.values()) for split, n in rows.items()}
    text = ", ".join(f"{split} {share:.1%}" for split, share in shares.items())
    if not declared:
        return Outcome(
            measured=shares,
            detail=f"The splits hold {text}; no shares are declared to compare with. Declare them: "
            "`--fractions train=0.8,val=0.1,test=0.1`.",
        )
    off = farthest_share(shares, declared)
    return Outcome(
        passed=off <= limits.fraction_tolerance,
        measured=shares,
        threshold=declared | {"tolerance": limits.fraction_tolerance},
        detail=f"{text}. The largest deviation from what was declared is {100 * off:.1f} "
        "percentage points.",
    )


def check_pairing(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Galaxies that are both a lens and a non-lens, against the declared mode."""
    both = lenses = 0
    for split in evidence.splits:
        sky, known, table = _sky(evidence, split, "label")
        label = table["label"].to_numpy()
        one, zero = (np.unique(sky[known & (label == k)], axis=0) for k in (1, 0))
        both, lenses = both + positions_in_both(one, zero), lenses + len(one)
    share = both / lenses if lenses else 0.0
    text = f"{both:,} of {lenses:,} lens galaxies ({share:.1%}) are also non-lenses"
    mode, measured = config.data.pairing, {"share": share, "galaxies": lenses}
    if mode == "undeclared":
        return Outcome(
            measured=measured,
            detail=f"{text}; no mode is declared. Declare `--set data.pairing=paired` or "
            "`unpaired`.",
        )
    off = 1 - share if mode == "paired" else share
    return Outcome(
        passed=off <= config.data.pairing_tolerance,
        measured=measured,
        threshold={"mode": mode, "tolerance": config.data.pairing_tolerance},
        detail=f"{text}; declared: {mode}.",
    )


def check_forbidden_inputs(evidence: Evidence, config: AuditConfig) -> Outcome:
    """Whether the network gets the pixels of the dataset's bands and nothing else."""
    content = evidence.checkpoint
    first = next((w for w in content["model"].values() if w.ndim == 4), None)
    if first is None:
        raise NotRunError("The checkpoint has no convolution, so its inputs are not known.")
    channels, bands = int(first.shape[1]), evidence.geometry.bands
    inputs = [*evidence.geometry.band_columns("pixels"), *map(str, content.get("inputs", []))]
    forbidden = leaking(inputs)
    extra = channels - len(bands)
    where = evidence.config.data.where
    selected = leaking(compile_where(where).columns) if where else []
    bad = bool(forbidden or extra)
    note = f" Training rows were selected by {', '.join(selected)}." if selected else ""
    return Outcome(
        passed=not bad,
        measured={"inputs": inputs, "channels": channels, "selected_by": selected},
        threshold={"channels": len(bands), "forbidden": 0},
        detail=(
            f"The network takes {channels} channels"
            + (f" and {', '.join(forbidden)}, which reveal the label." if forbidden else ".")
            if bad
            else f"The network sees the pixels of {listed(bands)} alone."
        )
        + note,
    )
