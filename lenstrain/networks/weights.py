"""Files of torch.save, read without running anything in them, and weights to start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lensprep.dataset import DECALS, Geometry
from lensprep.dataset.absence import no_checkpoint
from lensprep.errors import (
    CheckpointError,
    DatasetError,
    NotFoundError,
    ProjectError,
    passing_fault,
)


def load_weights(model: nn.Module, path: Path, geometry: Geometry = DECALS) -> None:
    """Fill a model from a local file: a checkpoint of this program or a state dict of torchvision.

    Tensors of another shape (a stem, a head of 1,000 classes) keep their random values.

    Raises
    ------
    CheckpointError
        If there is no such file, it is of another kind, fills less than half of the parameters,
        or was trained on stamps of another `geometry` or number of bands.
    StorageError
        If it cannot be read.
    """
    state, made, trained = _read_state(path)
    if trained is not None:
        require_geometry(trained, geometry, str(path), "the dataset")
    own = model.state_dict()
    bare = {name.removeprefix("backbone."): name for name in own}
    found = {}
    stem = next(name for name, value in own.items() if value.ndim == 4)
    for name, value in state.items():
        target = name if name in own else bare.get(name)
        if target is not None and own[target].shape == value.shape:
            found[target] = value
        elif target == stem and value.ndim == 4 and value.shape[1] != own[stem].shape[1]:
            raise CheckpointError(
                f"{path} holds weights for stamps of {value.shape[1]} bands, and the dataset's "
                f"have {own[stem].shape[1]}. Leave out model.weights, or take weights for as many."
            )
    filled = sum(own[name].numel() for name in found)
    if 2 * filled < sum(value.numel() for value in own.values()):
        known = [f"model.{k}={made[k]!s:.40}" for k in ("arch", "width", "blocks") if made.get(k)]
        raise CheckpointError(
            f"{path} does not fit this model: it fills {len(found)} of {len(own)} tensors. Set "
            + (" ".join(known) or "model.arch and model.width to what the weights were made with")
            + "."
        )
    model.load_state_dict(found, strict=False)


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], Geometry | None]:
    """Tensors by name; of a checkpoint of ours also its section ``model``, and its stamps."""
    try:
        content = load_tensors(path, "file of weights")
    except NotFoundError as error:
        raise CheckpointError(str(error)) from None
    made: Any = {}
    trained = None
    if isinstance(content, dict):
        if "geometry" in content or "dataset_id" in content:
            trained = trained_geometry(content, str(path))
        config = content.get("config")
        made = config.get("model") if isinstance(config, dict) else {}
        for inner in ("ema", "model"):
            if isinstance(content.get(inner), dict):
                content = content[inner]
                break
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no table of tensors. Save model.state_dict() in it.")
    return content, made if isinstance(made, dict) else {}, trained


def trained_geometry(content: Mapping[str, Any], where: str) -> Geometry:
    """What the stamps have in common on which a checkpoint was trained.

    Parameters
    ----------
    content : mapping
        Of the checkpoint. Checkpoints that do not state it are older than the choice.
    where : str
        Its name in messages.

    Raises
    ------
    CheckpointError
        If what it states is none.
    """
    if "geometry" not in content:
        return DECALS
    try:
        return Geometry.from_dict(content["geometry"])
    except DatasetError as error:
        raise CheckpointError(f"{where} is damaged: {error}. Use another checkpoint.") from error


def require_geometry(trained: Geometry, found: Geometry, checkpoint: str, where: str) -> None:
    """Refuse, with CheckpointError, stamps that are not such as a checkpoint was trained on.

    Parameters
    ----------
    trained, found : Geometry
        Of the checkpoint, and of what it is to be used on.
    checkpoint, where : str
        Their names in messages.
    """
    if trained == found:
        return
    name, *_ = [
        f.name for f in fields(Geometry) if getattr(trained, f.name) != getattr(found, f.name)
    ]
    other = f", of another {name}" if str(trained) == str(found) else ""
    raise CheckpointError(
        f"{checkpoint} was trained on stamps of {trained}, but {where} holds {found}{other}. Use a "
        "checkpoint trained on such stamps, or stamps like the checkpoint's."
    )


def load_tensors(
    path: Path, wanted: str, check: Callable[[BinaryIO], None] = lambda file: None
) -> Any:
    """Load a file that holds tensors and plain types only; tensors stay on the CPU.

    Parameters
    ----------
    path : Path
    wanted : str
        What the file should be, for messages: "checkpoint of lenstrain".
    check : callable, optional
        Called first, with the open file.

    Raises
    ------
    NotFoundError
        If there is no such file.
    StorageError
        If it cannot be read, which says nothing of its content.
    CheckpointError
        If it is a folder, or torch finds something else in it.
    """
    try:
        with path.open("rb") as file:
            check(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except ProjectError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(no_checkpoint(path)) from None
    except IsADirectoryError:
        raise CheckpointError(no_checkpoint(path)) from None
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise_passing(path, error)
        reason = type(error).__name__
        if isinstance(error, RuntimeError):  # others have no text, or advice to run what is there
            reason += f": {error!s:.200}".split("\n")[0].rstrip(".: ")
        raise CheckpointError(f"{path} is no {wanted} (torch.load: {reason}).") from error


def raise_passing(path: Path, error: Exception) -> None:
    """Raise StorageError if a reader failed for another reason than the content of the file.

    zipfile and torch replace what the disk or the memory allocator said with their own error.
    """
    if "can't allocate memory" in str(error):
        error = MemoryError()
    for cause in (error, error.__context__):
        if cause is not None and (fault := passing_fault(path, cause)) is not None:
            raise fault from error
