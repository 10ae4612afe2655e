"""A finder in a file, whatever its format: opened, asked what it is, and run on flux."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lensprep.dataset import Geometry
from lensprep.errors import CheckpointError, InputError, NotFoundError
from lensprep.store import Uri, file_sha256, is_remote, local_file, local_path, uri_suffix
from lenstrain.export import onnxfile, pt2file
from lenstrain.export.network import FluxFinder
from lenstrain.training.checkpoint import MOST_BYTES, load_model
from lenstrain.training.portable import SUFFIX, write_safetensors
from lenstrain.training.validate import full_float32

BATCH: Final = 256
"""Stamps that are run at a time."""


class _Runner(Protocol):
    """What runs a file."""

    runtime: str
    version: str
    facts: dict[str, Any]

    def run(self, flux: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Logits and probabilities, shape (n,) each."""


class _WeightsFinder:
    """A finder in safetensors, whose network is built by this program."""

    runtime = "torch"
    version = str(torch.__version__)

    def __init__(self, path: Path, where: str) -> None:
        model, self.facts = load_model(path)
        self._finder = FluxFinder(model, self.facts)

    def run(self, flux: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.inference_mode(), full_float32():
            return [value.numpy() for value in self._finder(torch.from_numpy(flux))]


class Format(NamedTuple):
    """One way to write a finder."""

    name: str
    write: Callable[[Path, FluxFinder, Mapping[str, Any]], None]
    open: Callable[[Path, str], _Runner]


FORMATS: Final = {
    SUFFIX: Format(
        "safetensors",
        lambda path, finder, facts: write_safetensors(path, finder.model, facts),
        _WeightsFinder,
    ),
    ".onnx": Format(f"ONNX, opset {onnxfile.OPSET}", onnxfile.write, onnxfile.OnnxFinder),
    ".pt2": Format("torch.export", pt2file.write, pt2file.ProgramFinder),
}
"""Formats by the suffix of a file."""


class Exported:
    """A finder that runs on flux; make it with `open_exported`.

    Attributes
    ----------
    facts : dict
        What the file says of itself: ``config``, ``normalization``, ``geometry``, ``calibration``
        (None if its probabilities are not calibrated), ``tta``, ``label_map``, ``dataset_id``,
        ``step``, ``epoch``, ``versions``, ``git_commit``, ``checkpoint_sha256``.
    format, runtime, version : str
        Of the file, and of what runs it.
    sha256 : str
    bytes : int
    """

    def __init__(self, runner: _Runner, format: str, sha256: str, size: int) -> None:
        self._runner = runner
        self.facts = runner.facts
        self.format, self.runtime, self.version = format, runner.runtime, runner.version
        self.sha256, self.bytes = sha256, size
        self._shape = Geometry.from_dict(self.facts["geometry"]).shape

    def __call__(
        self, flux: NDArray[np.floating]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score stamps, `BATCH` at a time.

        Parameters
        ----------
        flux : ndarray, shape (n, bands, side, side)
            In the unit of the survey (nanomaggies where its zero point is 22.5), in float32.

        Returns
        -------
        logit, probability : ndarray of float32, shape (n,)
            NaN where a pixel is not finite, or a band is of one value (or, where the normalisation
            divides by it, without scatter).

        Raises
        ------
        InputError
            If the stamps have another shape than those that it was trained on.
        """
        flux = np.asarray(flux)
        if flux.dtype.kind not in "fiu":
            raise InputError(f"stamps of type {flux.dtype} cannot be scored: give numbers.")
        if flux.ndim != 4 or flux.shape[1:] != self._shape:
            expected = " x ".join(map(str, self._shape))
            raise InputError(
                f"stamps of shape {flux.shape[1:]} cannot be scored: this finder takes n x "
                f"{expected} (bands, rows, columns)."
            )
        parts = [
            self._runner.run(np.ascontiguousarray(flux[start : start + BATCH], np.float32))
            for start in range(0, len(flux), BATCH)
        ]
        logit, probability = (
            np.concatenate([np.empty(0, np.float32), *(part[k] for part in parts)]) for k in (0, 1)
        )
        return logit, probability


def open_exported(uri: Uri) -> Exported:
    """Open a file that `lenstrain export` wrote, local or s3://; nothing in it is unpickled.

    Raises
    ------
    CheckpointError
        If there is none, its suffix is none of `FORMATS`, or it is damaged or not ours.
    StorageError
        If it cannot be read.
    """
    form = format_of(uri)
    try:
        fetched = local_file(uri, most_bytes=MOST_BYTES) if is_remote(uri) else None
        with fetched or nullcontext(local_path(uri)) as path:
            sha256, size = file_sha256(path), path.stat().st_size
            if size > MOST_BYTES:
                raise CheckpointError(f"{uri} has {size:,} bytes, too many for a finder.")
            try:
                return Exported(form.open(path, str(uri)), form.name, sha256, size)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(path), str(uri))) from error
    except NotFoundError:
        raise CheckpointError(f"{uri}: no such file. `lenstrain export` writes one.") from None


def format_of(uri: Uri) -> Format:
    """The format of a file by its suffix; CheckpointError if that is none."""
    form = FORMATS.get(uri_suffix(uri))
    if form is None:
        raise CheckpointError(
            f"{uri}: the suffix says how a finder is written, one of {', '.join(FORMATS)}."
        )
    return form
