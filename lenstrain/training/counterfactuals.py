"""Counterfactuals in training: none is an independent image, so they are measured by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensprep.dataset import Dataset
from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK
from lensprep.dataset.sidecar import is_counterfactual
from lensprep.errors import ConfigError
from lenstrain.evaluation.metrics import PAIR_AUROC
from lenstrain.evaluation.pairs import Pairs, find_pairs


@dataclass(frozen=True, slots=True, eq=False)
class Counterfactuals:
    """Those of a split that is validated on."""

    mask: NDArray[np.bool_]
    """Which rows of the split they are."""
    pairs: Pairs


def read_counterfactuals(dataset: Dataset, split: str) -> Counterfactuals | None:
    """The counterfactuals of a split, from its sidecars; None if there are none."""
    if not dataset.split(split).counterfactuals:
        return None
    table = dataset.read_sidecar(split, [COUNTERFACTUAL, HOST_TASK, DONOR_TASK])
    return Counterfactuals(is_counterfactual(table), find_pairs(table))


def require_pairs(dataset: Dataset, split: str, metric: str, key: str) -> None:
    """Refuse to steer by pairs where the split that is validated on has none.

    Parameters
    ----------
    dataset : Dataset
    split : str
    metric : str
        What steers; anything but ``pair_auroc`` needs no pairs.
    key : str
        Key of the configuration that names it.

    Raises
    ------
    ConfigError
    """
    if metric != PAIR_AUROC:
        return
    found = read_counterfactuals(dataset, split)
    if found is None or not found.pairs.lens.size:
        raise ConfigError(
            f"{key} is {metric!r}, but split {split!r} of {dataset.uri} has no pairs of a lens and "
            "the same light unlensed. Make them with `lensprep counterfactual` and convert them "
            "with the rest, or take another metric."
        )
