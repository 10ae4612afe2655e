"""Which files of a folder are cutouts: their names say so, whatever the case."""

from __future__ import annotations

from typing import Final

SUFFIXES: Final = (
    *(f"{bare}{packed}" for bare in (".fits", ".fit") for packed in ("", ".gz", ".fz", ".bz2")),
    ".npz",
)


def cutout_stem(name: str) -> str | None:
    """Name of a cutout without its folder and suffix; None of anything else and of hidden files."""
    name = name.rsplit("/", 1)[-1]
    suffix = next((end for end in SUFFIXES if name.lower().endswith(end)), None)
    return name[: -len(suffix)] if suffix and not name.startswith(".") else None
