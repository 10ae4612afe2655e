"""Checkpoints that hold as little as can be."""

from typing import Any, get_args

from lenstrain.training.checkpoint import REQUIRED


def blank_content() -> dict[str, Any]:
    """All that a checkpoint must have, of the right types and empty."""
    return {key: (get_args(kind) or (kind,))[0]() for key, kind in REQUIRED.items()}
