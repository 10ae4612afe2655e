"""What a location holds, judged by its names: a dataset, a tree, shards, cutouts, a run (pure).

A command that is given one in place of another says what it is and which command takes it, rather
than what is missing in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from lensprep.dataset.layout import MANIFEST_NAME, SPLITS

CUTOUT_SUFFIXES: Final = (
    *(f"{bare}{packed}" for bare in (".fits", ".fit") for packed in ("", ".gz", ".fz", ".bz2")),
    *(".npz", ".npy", ".h5", ".hdf5"),
)
"""Whatever their case."""
DATASET: Final = (
    "a converted dataset. `lensprep inspect` shows what is in it, `lensprep verify` checks it"
)
_BEGUN: Final = (
    "a conversion that did not finish, or is running. `lensprep convert ... --resume` continues it"
)
_RUN: Final = "the folder of a training run. `lenstrain monitor` shows it"
_SHARDS: Final = (
    "a folder of shards: one split, or a dataset whose copy or upload did not finish. Give the "
    "folder with the manifest, or copy it again"
)
_TREE: Final = (
    "a tree of parquet files. `lensprep check` says what is in it, `lensprep convert` makes a "
    "dataset of it"
)
_CUTOUTS: Final = (
    "a folder of cutouts. `lenstrain infer CHECKPOINT FOLDER --catalog TABLE` scores them; TABLE "
    "has their ra, dec (and key or file)"
)
_SIDECAR: Final = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{6}}\.parquet$")
_BY_ENDING: Final = {(".tar",): _SHARDS, (".parquet",): _TREE, CUTOUT_SUFFIXES: _CUTOUTS}
_BY_COLUMNS: Final = (
    ({"logit"}, "a table of scores. `lenstrain evaluate` reads it"),
    ({"key", "payload_crc32"}, "the sidecar of a shard. `lensprep inspect` takes its .tar"),
    ({"kind", "reason", "source_row_group"}, "a list of rows that were left out, and why"),
)


def folder_kind(names: Collection[str]) -> str | None:
    """What a folder is, and what to do with it; None if nothing is known.

    Parameters
    ----------
    names : collection of str
        Files in it, relative to it, with ``/``.
    """
    if MANIFEST_NAME in names:
        return DATASET
    if inner := min((name for name in names if name.endswith(f"/{MANIFEST_NAME}")), default=None):
        return f"a folder with a dataset in it: name its folder {inner.rpartition('/')[0]}"
    if ".work/plan.json" in names:
        return _BEGUN
    if "config.toml" in names and any(name.startswith("checkpoints/") for name in names):
        return _RUN
    if any(_SIDECAR.search(name) for name in names):
        return _SHARDS
    for endings, kind in _BY_ENDING.items():
        if any(name.lower().endswith(endings) for name in names):
            return kind
    return None


def table_kind(columns: Collection[str]) -> str | None:
    """What a table of this project is, if it is one, and what to do with it."""
    return next((kind for some, kind in _BY_COLUMNS if some <= {*columns}), None)


def cutout_stem(name: str) -> str | None:
    """Name of a cutout without its folder and suffix; None of anything else and of hidden files."""
    name = name.rsplit("/", 1)[-1]
    suffix = next((end for end in CUTOUT_SUFFIXES if name.lower().endswith(end)), None)
    return name[: -len(suffix)] if suffix and not name.startswith(".") else None
