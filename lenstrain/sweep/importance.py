"""Which settings the objective depends on, where there are trials enough to say so."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.search_space import intersection_search_space
from optuna.trial import TrialState

FEWEST_TRIALS = 20
TRIALS_PER_SETTING = 5
"""Finished trials that importances need, and for each setting.

In simulated studies of four and of eight settings, one of which makes up 60 % of the variance and
another 15 %, fANOVA put the right one first in 5 of 8 and 3 of 8 studies at one or two trials for
each setting, and in 16 of 16 at five.
"""
DRAWS = 8
"""Times that the trials are drawn again, each with a forest of its own."""
_TREES = 16
"""Of each forest: all together are twice what Optuna takes for one estimate."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of the settings in the variance of the objective, largest first."""

    shares: dict[str, float] = field(default_factory=dict)
    """Mean over the draws; they sum to 1."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest of the draws."""
    reason: str | None = None
    """Why there are none."""


def importance(study: optuna.Study) -> Importance:
    """Shares by fANOVA (Hutter et al. 2014, ICML 32, 754), of trials drawn with replacement.

    Those that have finished are drawn; pruned ones have no final value and do not count.

    A setting that only some trials have, or that is the same in all, has no share.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    keys = [
        key
        for key in intersection_search_space(done)
        if len({str(trial.params[key]) for trial in done}) > 1
    ]
    needed = max(FEWEST_TRIALS, TRIALS_PER_SETTING * len(keys))
    if not keys:
        return Importance(reason="No setting that every finished trial has differs between them.")
    if len(done) < needed:
        return Importance(
            reason=f"Too few trials: {len(done)} have finished, and shares of {len(keys)} settings "
            f"need {needed}. With fewer, a setting that does nothing often comes first."
        )
    if len({trial.value for trial in done}) == 1:
        return Importance(reason="All finished trials have the same value.")
    rng, found = np.random.default_rng(0), []
    with warnings.catch_warnings(action="ignore"):  # the evaluator is called experimental
        for seed in range(DRAWS):
            drawn = optuna.create_study(direction=study.direction)
            drawn.add_trials([done[row] for row in rng.integers(len(done), size=len(done))])
            evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
            shares = optuna.importance.get_param_importances(
                drawn, evaluator=evaluator, params=keys
            )
            found.append([shares[key] for key in keys])
    mean, low, high = (part(found, axis=0) for part in (np.mean, np.min, np.max))
    order = np.argsort(-mean)
    return Importance(
        {keys[k]: float(mean[k]) for k in order},
        {keys[k]: (float(low[k]), float(high[k])) for k in order},
    )
