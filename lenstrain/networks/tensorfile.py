"""Files of torch.save: read without running anything in them, and what a file is that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lensprep.dataset.absence import no_checkpoint
from lensprep.errors import CheckpointError, NotFoundError, ProjectError, passing_fault


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
    """Raise StorageError if what a reader complains of is not the content of the file.

    zipfile and torch put a complaint of their own in the place of what the disk or the memory said.
    """
    if "can't allocate memory" in str(error):
        error = MemoryError()
    for cause in (error, error.__context__):
        if cause is not None and (fault := passing_fault(path, cause)) is not None:
            raise fault from error
