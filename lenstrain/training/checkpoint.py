"""Checkpoints: whole or absent, plain types only, loaded without running anything in them."""

from __future__ import annotations

import functools
import os
import platform
import random
import subprocess
import warnings
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from torch import nn

import lenstrain
from lensprep.configfile import from_mapping
from lensprep.dataset import Geometry
from lensprep.errors import CheckpointError, ConfigError, NotFoundError, StorageError
from lensprep.store import (
    atomic_writer,
    file_sha256,
    is_remote,
    local_file,
    local_path,
    sync_folder,
    uri_suffix,
)
from lenstrain.config import Config
from lenstrain.networks.finder import build_model
from lenstrain.networks.weights import load_tensors, raise_passing, trained_geometry
from lenstrain.training.portable import SUFFIX, read_safetensors

FORMAT = "lenstrain-checkpoint"
FORMAT_VERSION = 1
LAST = "last.pt"
BEST = "best.pt"
PREVIOUS = "previous.pt"
REQUIRED: Final[dict[str, type | UnionType]] = {
    "model": dict,
    "ema": dict | None,
    "optimizer": dict,
    "scheduler": dict,
    "scaler": dict,
    "stopper": dict,
    "loader": dict,
    "rng": list,
    "totals": list,
    "step": int,
    "epoch": int,
    "metrics": dict,
    "config": dict,
    "normalization": dict,
    "label_map": dict,
    "dataset": str,
    "dataset_id": str,
    "versions": dict,
    "git_commit": str | None,
}
"""Keys that every checkpoint has, besides ``format`` and ``format_version``, and their types.

Also ``geometry``, what its stamps had in common, which older ones lack: theirs were of DECaLS."""

MOST_BYTES = 16 << 30
"""Upper limit for a checkpoint: ten times that of the largest network of torchvision."""

WANTED = "checkpoint of lenstrain"

_ANOTHER = " Use another checkpoint of the run."

PACKAGES = ("torch", "torchvision", "numpy", "webdataset")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under another name, force it to the disk, then rename it.

    Raises
    ------
    StorageError
        If the disk refuses. An older file of that name is then untouched.
    """
    with atomic_writer(path, sync=True) as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
        except RuntimeError as error:
            # When torch closes its archive, its own error hides that of the disk.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_last(folder: Path, content: dict[str, Any], names: list[str]) -> None:
    """Write ``last.pt``, keep the one before as ``previous.pt``, and give it further names.

    Further names are hard links: the file is written once. Later writes replace names, not
    contents, so a link never changes under its name.
    """
    last = folder / LAST
    if last.exists():
        link(last, folder / PREVIOUS)
    save_checkpoint(last, content)
    for name in names:
        link(last, folder / name)
    sync_folder(folder)


def link(source: Path, target: Path) -> None:
    """Give a file another name, in place of an older one of that name."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        with atomic_writer(target, sync=True) as file:
            file.write(source.read_bytes())
        return
    temporary.replace(target)


class LostCheckpointError(CheckpointError):
    """There is none, or its bytes are not what was written: an older one may replace it."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint; tensors stay on the CPU.

    It has ``geometry``, also if it is older than that.

    Raises
    ------
    LostCheckpointError
        If there is none, or it is damaged.
    CheckpointError
        If it is not one of this program and version.
    StorageError
        If it cannot be read, which says nothing of its content.
    """
    try:
        content = load_tensors(path, WANTED, functools.partial(_check_archive, path))
    except NotFoundError as error:
        raise LostCheckpointError(str(error)) from None
    if not isinstance(content, dict) or str(content.get("format")) != FORMAT:
        raise CheckpointError(f"{path} is no {WANTED}.")
    version = content.get("format_version")
    if not isinstance(version, int) or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version!r:.20}; this version reads "
            f"{FORMAT_VERSION}. Use the version of lenstrain that wrote it."
        )
    for key, kind in REQUIRED.items():
        if key not in content:
            raise CheckpointError(f"{path} lacks {key!r}.{_ANOTHER}")
        if not isinstance(content[key], kind):
            found = type(content[key]).__name__
            raise CheckpointError(f"{path}: {key!r} is of type {found}.{_ANOTHER}")
    content["geometry"] = trained_geometry(content, str(path)).to_dict()
    return content


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Verify the CRC-32 of every member of the archive, which torch writes and does not read.

    It also writes them uncompressed: a small file that unpacks to many bytes is not torch's.
    """
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes, too many for a {WANTED}.")
    try:
        with zipfile.ZipFile(file) as archive:
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            broken = archive.testzip() if plain else None
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise_passing(path, error)
        file.seek(0)
        if file.read(2) == b"PK":
            raise LostCheckpointError(f"{path} is damaged ({error!s:.200}).{_ANOTHER}") from error
        what = "no zip archive" if size else "empty"
        raise LostCheckpointError(f"{path} is no {WANTED}: it is {what}.") from error
    if broken is not None:
        raise LostCheckpointError(f"{path} is damaged (wrong CRC-32 of {broken!r:.80}).{_ANOTHER}")
    if not plain:
        raise CheckpointError(f"{path} is no {WANTED}: its archive is compressed.")


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint to resume from."""

    path: Path
    content: dict[str, Any]


def load_latest(folder: Path) -> Found:
    """Read the last checkpoint of a run, or the one before if the last is damaged, with a warning.

    Raises
    ------
    LostCheckpointError
        If neither is whole.
    CheckpointError, StorageError
        If the last is not of this version, or cannot be read: it may still be the newest state.
    """
    last = folder / LAST
    try:
        return Found(last, load_checkpoint(last))
    except LostCheckpointError as error:
        if not (folder / PREVIOUS).exists():
            raise
        warnings.warn(f"{error} Falling back to {folder / PREVIOUS}.", stacklevel=2)
    return Found(folder / PREVIOUS, load_checkpoint(folder / PREVIOUS))


def keep_as_last(path: Path) -> None:
    """Replace a damaged ``last.pt`` by the checkpoint that a run resumes from.

    Otherwise the next save would keep the damaged one as ``previous.pt``, and a run that is killed
    in the middle of that save would have no whole checkpoint left.
    """
    if path.name != LAST:
        link(path, path.with_name(LAST))
        sync_folder(path.parent)


def _config(path: Path, content: dict[str, Any]) -> Config:
    """Configuration that a checkpoint was made with."""
    try:
        return from_mapping(Config, content["config"])
    except ConfigError as error:
        made = content["versions"].get("lenstrain", "unknown")
        raise CheckpointError(
            f"{path}, made by lenstrain {made!s:.20}, has a configuration that lenstrain "
            f"{lenstrain.__version__} cannot use: {error}"
        ) from error


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Load a model for scoring: the averaged weights if the run kept an average.

    Parameters
    ----------
    path : Path
        A checkpoint, or a ``.safetensors`` that `lenstrain export` wrote.
    device : torch.device or str

    Returns
    -------
    model : nn.Module
        In evaluation mode, float32, on `device`.
    meta : dict
        All of the checkpoint but its large states: config, normalization, geometry, label_map,
        dataset_id, step, epoch, versions, git_commit, and of a checkpoint of a run dataset and
        metrics.

    Raises
    ------
    CheckpointError
        As `load_checkpoint`, or if the weights do not fit the configuration.
    """
    portable = path.suffix.lower() == SUFFIX
    content = read_safetensors(path, MOST_BYTES) if portable else load_checkpoint(path)
    config = _config(path, content)
    # The starting weights may be gone by now, and are overwritten anyway.
    described, weights = replace(config.model, weights=None), content.get("ema") or content["model"]
    geometry = Geometry.from_dict(content["geometry"])
    with torch.device("meta"):  # no memory is used before the weights are known to fit
        expected = {
            name: value.shape
            for name, value in build_model(described, geometry).state_dict().items()
        }
    if {name: getattr(value, "shape", None) for name, value in weights.items()} != expected:
        raise CheckpointError(
            f"{path}: the weights do not fit the model of its configuration ({config.model.arch})."
        )
    model = build_model(described, geometry)
    model.load_state_dict(weights)
    large = {"model", "ema", "optimizer", "scheduler", "scaler", "stopper", "loader", "rng"}
    meta = {key: value for key, value in content.items() if key not in large}
    return model.to(device).eval(), meta


def load_finder(
    uri: str | os.PathLike[str], device: torch.device | str
) -> tuple[nn.Module, dict[str, Any], str]:
    """Load a model from a checkpoint, or its export, on a disk or in an object store.

    Returns
    -------
    model, meta, sha256
        As `load_model`; the digest is that of the file.

    Raises
    ------
    CheckpointError, StorageError
        If it cannot be used, or not be read.
    """
    if uri_suffix(uri) in (".onnx", ".pt2"):
        raise CheckpointError(
            f"{uri} is an exported program, which takes flux: score with a checkpoint or its "
            ".safetensors, or run it with lenstrain.export.open_exported."
        )
    try:
        fetched = local_file(uri, most_bytes=MOST_BYTES) if is_remote(uri) else None
        with fetched or nullcontext(local_path(uri)) as path:
            try:
                model, meta = load_model(path, device)
            except (CheckpointError, StorageError) as error:
                raise type(error)(str(error).replace(str(path), str(uri))) from error
            return model, meta, file_sha256(path)
    except NotFoundError:
        raise CheckpointError(f"{uri}: no such checkpoint. `lenstrain train` makes one.") from None


def rng_state() -> dict[str, Any]:
    """State of every generator of this process, in plain types and tensors."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one, whoever draws from it
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def versions() -> dict[str, str]:
    """Versions of what a result depends on; a package that is not installed is left out."""
    found = {"lenstrain": lenstrain.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """Commit of the code if it runs from a checkout, with ``+`` if files were changed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        options: Any = {"check": True, "capture_output": True, "text": True, "timeout": 10}
        return str(subprocess.run(command, **options).stdout.strip())

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return None
