"""What a path is where a run or a checkpoint was asked for, in the words of a message."""

from __future__ import annotations

import difflib
from os import PathLike
from pathlib import Path

from lensprep.dataset.kinds import folder_kind
from lensprep.store import is_remote, local_path, open_store

Uri = str | PathLike[str]

_NAMES = 3
"""Names of a folder's content that a message lists."""


def no_run(uri: Uri) -> str:
    """Why a location is not the folder of a run, and what to name instead."""
    if is_remote(uri):
        names = [entry.name for entry in open_store(uri).entries()]
        return f"{uri} is not the folder of a run (it has no config.toml): {_content(names)}."
    path = local_path(uri)
    if not path.exists():
        return _nothing(path)
    if path.is_file():
        run = path.parent.parent
        hint = f"Its run is {run}." if (run / "config.toml").is_file() else "Name a run's folder."
        return f"{path} is a file, not the folder of a run. {hint}"
    return f"{path} is not the folder of a run (it has no config.toml): {_folder(path)}."


def no_checkpoint(uri: Uri) -> str:
    """Why a location is no checkpoint, if that can be seen from outside, and what to name."""
    path = local_path(uri)
    if not path.exists():
        return f"{_nothing(path, 'checkpoint')} `lenstrain train` makes checkpoints."
    found = [name for name in ("checkpoints/best.pt", "best.pt") if (path / name).is_file()]
    hint = f"Name a file, such as {path / found[0]}." if found else "Name RUN/checkpoints/best.pt."
    return f"{path} is a folder, not a checkpoint: {_folder(path)}. {hint}"


def _nothing(path: Path, what: str = "file or folder") -> str:
    """That there is nothing, with the names nearby that look like it."""
    if not path.parent.is_dir():
        return f"{path}: no such {what}, and no folder {path.parent}."
    names = sorted(found.name for found in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names)
    hint = f"near it: {_listed(near)}" if near else f"{path.parent} holds {_listed(names)}"
    return f"{path}: no such {what}; {hint}."


def _folder(path: Path) -> str:
    return _content(sorted(entry.name for entry in open_store(path).entries()))


def _content(names: list[str]) -> str:
    kind = folder_kind(names)
    return f"it is {kind}" if kind else f"it holds {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{', '.join(names[:_NAMES])}{more}" if names else "nothing"
