"""Finders as others receive them: what every exported file says of itself, and safetensors.

    facts_text(facts), parse_facts(text, where)     the same JSON, in whatever format the file has
    write_safetensors(path, model, facts)           weights and facts, nothing of torch's own
    read_safetensors(path) -> content               as `lenstrain.training.checkpoint` has one

A file may come from anybody: nothing in it is unpickled, and all that is used is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Final

from torch import nn

from lensprep.dataset import Geometry, NormalizationSpec
from lensprep.dataset.strictjson import check_number, parse_json
from lensprep.errors import CheckpointError, DatasetError, error_line, passing_fault

FORMAT: Final = "lenstrain-finder"
FORMAT_VERSION: Final = 1
KEY: Final = "lenstrain"
"""Under which an exported file has its facts."""
SUFFIX: Final = ".safetensors"
MOST_FACTS: Final = 1 << 20
"""Characters of facts; those of our networks are some thousands."""

_REQUIRED: Final[dict[str, type | UnionType]] = {
    "config": dict,
    "normalization": dict,
    "geometry": dict,
    "label_map": dict,
    "calibration": dict | None,
    "tta": bool,
    "dataset_id": str,
    "step": int,
    "epoch": int,
    "versions": dict,
    "git_commit": str | None,
    "checkpoint_sha256": str,
}
"""Facts of every exported file, besides format and version, and their types."""
_MAP: Final = ("slope", "offset")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
AGAIN: Final = "`lenstrain export` writes one."


def facts_text(facts: Mapping[str, Any]) -> str:
    """The facts of an exported file as JSON, the same text for the same facts."""
    return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **facts},
                      sort_keys=True, allow_nan=False)  # fmt: skip


def parse_facts(text: str | None, where: str) -> dict[str, Any]:
    """Inverse of `facts_text`, checked.

    Parameters
    ----------
    text : str or None
        None if the file has none.
    where : str
        Its name in messages.

    Raises
    ------
    CheckpointError
        If it is not of this program and version, or lacks something.
    """
    try:
        if text is None or len(text) > MOST_FACTS:
            raise ValueError
        facts = parse_json(text)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise ValueError
    except ValueError:
        raise CheckpointError(
            f"{where} is no finder of lenstrain, and does not say how it normalises. {AGAIN}"
        ) from None
    version = facts.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format {version!r:.20} of exported finders; this version reads "
            f"{FORMAT_VERSION}. Use the version of lenstrain that wrote it."
        )
    for name, kind in _REQUIRED.items():
        if not isinstance(facts.get(name, ...), kind):
            raise CheckpointError(f"{where} is damaged: its {name!r} is missing or wrong. {AGAIN}")
    if not _DIGEST.fullmatch(facts["checkpoint_sha256"]):
        raise CheckpointError(f"{where} is damaged: its checkpoint_sha256 is none. {AGAIN}")
    try:
        geometry = Geometry.from_dict(facts["geometry"])
        NormalizationSpec.from_dict(facts["normalization"]).of_bands(geometry)
        map_of(facts["calibration"])
    except DatasetError as error:
        raise CheckpointError(f"{where} is damaged: {error}. {AGAIN}") from None
    return facts


def map_of(calibration: Mapping[str, Any] | None) -> tuple[float, float]:
    """Slope and offset from logits to those of calibrated probabilities; 1 and 0 without any.

    Raises
    ------
    DatasetError
        If they are no finite numbers, the slope is not positive, or what it is has no name.
    """
    if calibration is None:
        return 1.0, 0.0
    slope, offset = (check_number(calibration.get(n), f"calibration: {n}") for n in _MAP)
    if not slope > 0:
        raise DatasetError(f"calibration: the slope {slope} is not positive")
    if not isinstance(calibration.get("kind"), str):
        raise DatasetError("calibration has no kind")
    return float(slope), float(offset)


def write_safetensors(path: Path, model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write the weights of a model with its facts; the same bytes for the same content."""
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    # One entry: of several, the library writes the order anew in every process.
    path.write_bytes(save(tensors, {KEY: facts_text(facts)}))


def read_safetensors(path: Path, most_bytes: int) -> dict[str, Any]:
    """Facts and weights of an exported file; the weights are ``model``, on the CPU.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is none of ours.
    StorageError
        If it cannot be read, which says nothing of its content.
    """
    from safetensors import SafetensorError, safe_open

    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise CheckpointError(f"{path} has {size:,} bytes, too many for a finder. {AGAIN}")
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = parse_facts((file.metadata() or {}).get(KEY), str(path))
            tensors = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - it is no dict
            }
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        if fault := passing_fault(path, error):
            raise fault from error
        raise CheckpointError(
            f"{path} is no finder in safetensors ({error_line(error)}). {AGAIN}"
        ) from error
    return {**facts, "model": tensors}
