"""Small datasets with counterfactuals, some of them among the ordinary rows of every shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK, LENSED
from lensprep.dataset.writer import write_dataset
from tests.datasets import SPEC, tiny_pixels, tiny_table

KINDS = (LENSED, "unlensed", "magnified")


def family_table(
    rows: int, families: int, kinds: Sequence[str] = KINDS, split: str = "train", seed: int = 0
) -> pa.Table:
    """Ordinary rows as of `tiny_table`, then a row of each kind for each family.

    The host of family ``i`` is the ordinary row ``2 i``, its donor the one after it.
    """
    ordinary = tiny_table(rows, split, seed)
    host = np.repeat(2 * np.arange(families), len(kinds))
    kind = np.tile(np.array(kinds), families)
    lens = kind == LENSED
    donors = ordinary.take(pa.array(host + 1))
    made = ordinary.take(pa.array(host))
    number = {"train": 4, "val": 5, "test": 6}[split]
    changed: dict[str, Any] = {
        "key": [f"{number:x}{i:031x}" for i in range(len(host))],
        "label": pa.array(lens, pa.int8()),
        "task_id": [f"{split}-made-{i}" for i in range(len(host))],
        "lens_model": np.where(lens, "SIE", "CONTROL").tolist(),
        "theta_e_arcsec": np.where(lens, donors["theta_e_arcsec"].to_numpy(), 0.0),
    }
    for name, values in changed.items():
        column = pa.array(values, ordinary[name].type)
        made = made.set_column(made.column_names.index(name), name, column)
    texts = {
        COUNTERFACTUAL: kind.tolist(),
        HOST_TASK: ordinary["task_id"].take(pa.array(host)),
        DONOR_TASK: donors["task_id"],
    }
    for name, values in texts.items():
        ordinary = ordinary.append_column(name, pa.nulls(rows, pa.string()))
        made = made.append_column(name, pc.cast(pa.array(list(values)), pa.string()))
    return pa.concat_tables([ordinary, made])


def family_dataset(
    folder: Path,
    rows: int | Mapping[str, int],
    families: int | Mapping[str, int],
    kinds: Sequence[str] = KINDS,
    shard_rows: int = 32,
    *,
    seed: int = 0,
) -> Path:
    """Write a dataset whose counterfactuals lie at random among its ordinary rows.

    Lenses, those among the counterfactuals too, have a ring; ordinary rows keep their order and
    the pixels that they have without counterfactuals, as `tiny_dataset` with ``signal``.
    """
    counts = {"train": rows} if isinstance(rows, int) else dict(rows)
    splits = {}
    for number, (split, count) in enumerate(counts.items()):
        some = families if isinstance(families, int) else families.get(split, 0)
        table = family_table(count, some, kinds, split, seed + number)
        labels = table["label"].to_numpy()
        pixels = tiny_pixels(count, seed + number, labels[:count])
        made = tiny_pixels(len(labels) - count, seed + 100 + number, labels[count:])
        place = np.random.default_rng(seed).random(len(labels))
        place[:count].sort()
        order = np.argsort(place)
        splits[split] = (np.concatenate([pixels, made])[order], table.take(pa.array(order)))
    write_dataset(folder / "families", splits, SPEC, shard_rows=shard_rows)
    return folder / "families"
