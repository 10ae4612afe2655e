"""How far exported files are from the checkpoint, stamp by stamp."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special
from torch import nn

from lensprep.dataset import NormalizationSpec
from lensprep.dataset.normalization import band_statistics, normalize
from lensprep.errors import CheckpointError
from lenstrain.export.exported import Exported
from lenstrain.export.stamps import Stamps
from lenstrain.networks.ensemble import D4Mean
from lenstrain.probes.scoring import TOLERANCE, Scorer
from lenstrain.training.portable import map_of

LOGIT_TOLERANCE: Final = TOLERANCE["float32"]
PROBABILITY_TOLERANCE: Final = 1e-6
"""Largest difference of a probability from that which belongs to the file's own logit."""

Floats = NDArray[np.float64]


class Difference:
    """What is known of one file, after some rows.

    Parameters
    ----------
    finder : Exported
    """

    def __init__(self, finder: Exported) -> None:
        self.finder = finder
        self._calibration = map_of(finder.facts["calibration"])
        self._rows = self._wrong = 0
        self._largest, self._total = np.zeros(2), np.zeros(2)

    def add(self, flux: NDArray[np.float32], expected: Floats) -> None:
        """Take in some rows, of which the checkpoint has these logits."""
        slope, offset = self._calibration
        logit, probability = (found.astype(np.float64) for found in self.finder(flux))
        far = (
            np.abs(logit - expected),
            np.abs(probability - special.expit(slope * expected + offset)),
        )
        fine = far[0] <= LOGIT_TOLERANCE * np.maximum(1.0, np.abs(expected))
        # From the file's own logit: a steep map would make much of a little rounding.
        own = special.expit(slope * logit + offset)
        fine &= np.abs(probability - own) <= PROBABILITY_TOLERANCE
        self._rows += len(flux)
        self._wrong += int(np.count_nonzero(~fine))  # also of NaN
        self._largest = np.maximum(self._largest, [values.max(initial=0.0) for values in far])
        self._total += [values.sum() for values in far]

    def require_small(self, where: str, checkpoint: str) -> None:
        """Refuse, with CheckpointError, a file that is not the checkpoint."""
        if self._wrong:
            raise CheckpointError(
                f"{where} is not {checkpoint}: {self._wrong:,} of {self._rows:,} stamps differ by "
                f"more than rounding, up to {self._largest[0]:.3g} in the logit (at most "
                f"{LOGIT_TOLERANCE:g}) and {self._largest[1]:.3g} in the probability."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; None where no row was compared."""
        names = "logit", "probability"
        rows = self._rows
        largest = {f"largest_{n}_difference": float(v) if rows else None
                   for n, v in zip(names, self._largest, strict=True)}  # fmt: skip
        mean = {f"mean_{n}_difference": float(v) / rows if rows else None
                for n, v in zip(names, self._total, strict=True)}  # fmt: skip
        return {"rows": rows, **largest, **mean}


def compare(
    model: nn.Module,
    spec: NormalizationSpec,
    stamps: Iterable[Stamps],
    finders: Sequence[Difference],
    *,
    tta: bool,
    anew: bool,
) -> Iterable[int]:
    """Score stamps with a checkpoint and with exported files, and note how far they are apart.

    Parameters
    ----------
    model : nn.Module
        The checkpoint's, which is given stored pixels.
    spec : NormalizationSpec
    stamps : iterable of Stamps
    finders : sequence of Difference
    tta : bool
        Average the logit of the checkpoint over the elements of D4.
    anew : bool
        Give the checkpoint what conversion would store of the flux, not what is stored. Of flux
        that was restored, median and scatter are not those of the raw stamp: stored pixels are
        rounded, so that statistics measured on them are off by up to 4e-4, and all pixels with
        them. That is no fault of a file which measures them.

    Yields
    ------
    int
        Rows done since the last time.

    Raises
    ------
    CheckpointError
        If the checkpoint gives logits that are not finite.
    """
    score = Scorer(D4Mean(model) if tta else model)
    for some in stamps:
        stored = (
            normalize(some.flux, spec, *band_statistics(some.flux, spec)) if anew else some.stored
        )
        expected = score(stored)
        if not np.isfinite(expected).all():
            raise CheckpointError(
                "The checkpoint gives logits that are not finite. Use another of the run."
            )
        for finder in finders:
            finder.add(some.flux, expected)
        yield len(expected)
