"""Messages for a location that is not the dataset, run or checkpoint it was taken for."""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath

from lensprep.dataset.kinds import folder_kind
from lensprep.dataset.layout import MANIFEST_NAME
from lensprep.store import RemoteStore, Store, Uri, is_remote, local_path, open_store

_NAMES = 3
"""Names of a folder's content that a message lists."""


def no_dataset(store: Store) -> str:
    """Why a location is no dataset: nothing, a file, inside a dataset, or something else."""
    names = [entry.name for entry in store.entries()]
    if isinstance(store, RemoteStore):
        scheme, _, path = store.uri.partition("://")
        folder = PurePosixPath(path)
        for outer in folder.parents[:-1][:2]:
            holder = open_store(f"{scheme}://{outer}", store.options)
            is_there = names or holder.has(folder.relative_to(outer).as_posix())
            if is_there and holder.has(MANIFEST_NAME):
                return _inside(store.uri, holder.uri)
        return _no_manifest(store.uri, names) if names else f"{store.uri}: nothing is there."
    root = Path(store.uri)
    # Its manifest, a split's folder or a shard may have been named instead of the dataset.
    for above in root.absolute().parents[:2]:
        if root.exists() and (above / MANIFEST_NAME).is_file():
            return _inside(str(root), str(above))
    if root.is_dir():
        return _no_manifest(str(root), names)
    if root.exists():
        return f"{root} is a file, not a dataset."
    near = difflib.get_close_matches(root.name, _beside(root), n=1)
    hint = f"Did you mean {root.parent / near[0]}?" if near else "`lensprep convert` makes one."
    return f"{root}: no such dataset. {hint}"


def _no_manifest(uri: str, names: list[str]) -> str:
    if not names:
        return f"{uri} has no {MANIFEST_NAME}: it is empty."
    kind = folder_kind(names)
    if kind is not None:
        return f"{uri} has no {MANIFEST_NAME}; it is {kind}."
    return (
        f"{uri} has no {MANIFEST_NAME}: it is no dataset, or converting or copying one did not "
        "finish."
    )


def _inside(uri: str, dataset: str) -> str:
    return f"{uri} lies inside the dataset {dataset}. Give that folder."


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
    """Why a location that is no file is no checkpoint, and what to name instead."""
    path = local_path(uri)
    if not path.exists():
        return f"{_nothing(path, 'checkpoint')} `lenstrain train` makes checkpoints."
    found = [name for name in ("checkpoints/best.pt", "best.pt") if (path / name).is_file()]
    hint = f"Name a file, such as {path / found[0]}." if found else "Name RUN/checkpoints/best.pt."
    return f"{path} is a folder, not a checkpoint: {_folder(path)}. {hint}"


def _nothing(path: Path, what: str = "file or folder") -> str:
    """That nothing is there, with similar names nearby."""
    if not path.parent.is_dir():
        return f"{path}: no such {what}, and no folder {path.parent}."
    names = _beside(path)
    near = difflib.get_close_matches(path.name, names)
    hint = f"near it: {_listed(near)}" if near else f"{path.parent} holds {_listed(names)}"
    return f"{path}: no such {what}; {hint}."


def _beside(path: Path) -> list[str]:
    """Names in the folder in which a path lies."""
    return sorted(found.name for found in path.parent.iterdir()) if path.parent.is_dir() else []


def _folder(path: Path) -> str:
    return _content(sorted(entry.name for entry in open_store(path).entries()))


def _content(names: list[str]) -> str:
    kind = folder_kind(names)
    return f"it is {kind}" if kind else f"it holds {_listed(names)}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{', '.join(names[:_NAMES])}{more}" if names else "nothing"
