"""What a sweep searches, how long, and what it does with the best: read from one TOML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any

from lensprep.configfile import (
    find_file,
    from_mapping,
    load_config,
    packaged_files,
    to_mapping,
    typed,
)
from lensprep.errors import ConfigError
from lensprep.store import Uri, join_uri, split_uri
from lenstrain.config import Config
from lenstrain.evaluation.metrics import steering_metric
from lenstrain.sweep.space import Dimension, apply, leaves, parse_space


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The search."""

    trials: int = 40
    """Trials in the study, including pruned and failed ones, over all workers and restarts."""

    objective: str = "tpr_at_fpr"
    """Validation metric to improve, one that ``train.monitor`` may name; the best epoch of a trial
    counts. AUROC alone does not say whether a finder works at the false-positive rates that a
    survey can inspect."""

    seed: int = 0
    """Seed of the sampler. All trials train with ``train.seed`` of the base."""

    startup_trials: int = 10
    """Trials drawn at random before the TPE sampler learns from them."""

    pruner_startup: int = 5
    """Trials that must have finished before any is pruned."""

    pruner_warmup_epochs: int = 2
    """Epochs that every trial may train before it can be pruned."""

    baseline: bool = True
    """Make the base configuration the first trial, as far as it lies inside the ranges."""

    lr_batch_exponent: float = 0.5
    """The learning rate that is drawn belongs to a batch of 256; a trial with batch B trains with
    it times ``(B / 256) ** exponent``. 0.5 suits AdamW, 1 is linear, 0 leaves it as drawn."""

    attempts: int = 3
    """Attempts at a trial whose process dies before it counts as failed."""

    failures_in_a_row: int = 10
    """Failed trials in a row after which the sweep gives up: something is wrong with them all."""

    keep_checkpoints: bool = False
    """Keep the checkpoints of the trials; those of the refits are always kept."""

    def __post_init__(self) -> None:
        for name in ("trials", "attempts", "failures_in_a_row", "pruner_startup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "startup_trials", "pruner_warmup_epochs", "lr_batch_exponent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class RefitConfig:
    """What follows the search: the best trials again, with several seeds."""

    top: int = 3
    """Best trials that are trained again."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of these runs. The best of many trials is partly luck; the mean much less so."""

    epochs: int | None = None
    """Epochs of a refit, if not those of the trials."""

    def __post_init__(self) -> None:
        if self.top < 1 or not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("top must be at least 1, and seeds must be given and differ")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """The file of a sweep."""

    base: str | None = None
    """Training configuration that every trial starts from: a file relative to this one, or a name
    of `lenstrain config list`; the defaults if not set."""

    fixed: dict[str, Any] = field(default_factory=dict)
    """Keys of the training configuration that differ from the base in every trial."""

    search: SearchConfig = field(default_factory=SearchConfig)
    """The search."""

    refit: RefitConfig = field(default_factory=RefitConfig)
    """What follows it."""

    space: dict[str, Any] = field(default_factory=dict)
    """Ranges, by key of the training configuration."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A resolved sweep, which depends on no other file."""

    base: Config
    search: SearchConfig
    refit: RefitConfig
    space: tuple[Dimension, ...]

    def identity(self) -> dict[str, Any]:
        """What must not change within a study, whose trials could not be compared otherwise."""
        return {
            "base": to_mapping(self.base),
            "objective": self.search.objective,
            "lr_batch_exponent": self.search.lr_batch_exponent,
            "space": [asdict(dimension) for dimension in self.space],
        }


def load_plan(path: str | PathLike[str], overrides: tuple[str, ...] = ()) -> Plan:
    """Read a sweep's file and check everything that can be checked before a trial.

    Parameters
    ----------
    path : str or path
    overrides : tuple of str
        Such as ``search.trials=20``; ``fixed.train.epochs=3`` reaches the trials.

    Raises
    ------
    ConfigError
        If the file cannot be read, a key is unknown, no value of a range can be used, or the
        objective is not one that may steer or would be taken on the test split.
    """
    sweep = load_config(SweepConfig, path, overrides)
    steering_metric(sweep.search.objective, "search.objective")
    space = parse_space(sweep.space)
    mapping = apply(to_mapping(load_config(Config, _base(sweep, path))), dict(leaves(sweep.fixed)))
    base = from_mapping(Config, mapping)
    # The objective steers every trial: its best epoch, its patience, its pruning.
    base = replace(base, train=replace(base.train, monitor=sweep.search.objective))
    if base.eval.split != "val" or any(d.key == "eval.split" for d in space):
        raise ConfigError(
            f"eval.split is {base.eval.split!r}: a sweep chooses on the validation split only. "
            "Leave eval.split at 'val'; the test split is opened once, after all choices."
        )
    if base.train.checkpoint_copy is not None:
        raise ConfigError(
            "train.checkpoint_copy is for one run, and a sweep makes many. Leave it out."
        )
    for dimension in space:
        check_dimension(dimension, to_mapping(base))
    return Plan(base, sweep.search, sweep.refit, space)


def _base(sweep: SweepConfig, path: Uri) -> str | None:
    """Location of the base configuration."""
    if sweep.base is None:
        return None
    named = sweep.base in packaged_files("lenstrain", "configs")
    beside = sweep.base if named else join_uri(split_uri(path)[0], sweep.base)
    return find_file(beside, "lenstrain", "configs")


def check_dimension(dimension: Dimension, base: dict[str, Any]) -> None:
    """Refuse a range whose key is unknown, or none of whose values can be used."""
    section, _, key = dimension.key.partition(".")
    if not hasattr(getattr(Config(), section, None), key):
        from_mapping(Config, apply({}, {dimension.key: dimension.examples()[0]}))
        raise ConfigError(f"[space] {dimension.key!r} is not a key of the training configuration.")
    refusals = []
    for value in dimension.examples():
        try:
            # Alone: a value may need another dimension's, such as model.blocks an architecture.
            from_mapping(Config, apply(base, {dimension.key: value}))
        except ConfigError as error:
            refusals.append(str(error))
    if len(refusals) == len(dimension.examples()) and not dimension.when:
        raise ConfigError(f"[space] {dimension.key}: no value of it can be used: {refusals[0]}")


def trial_config(plan: Plan, values: dict[str, Any]) -> Config:
    """Configuration of a trial; ConfigError if the drawn values are incompatible."""
    changes = dict(values)
    if "optim.lr" in changes and plan.search.lr_batch_exponent:
        batch = changes.get("data.batch_size", plan.base.data.batch_size)
        changes["optim.lr"] *= (batch / 256) ** plan.search.lr_batch_exponent
    return from_mapping(Config, apply(to_mapping(plan.base), changes))


def baseline_values(plan: Plan) -> dict[str, Any]:
    """The base configuration as a point of the space, without what lies outside it."""
    mapping = to_mapping(plan.base)
    values: dict[str, Any] = {}
    for dimension in plan.space:
        section, _, key = dimension.key.partition(".")
        value = mapping[section].get(key)
        if dimension.key == "optim.lr" and plan.search.lr_batch_exponent:
            value *= (256 / plan.base.data.batch_size) ** plan.search.lr_batch_exponent
        if dimension.holds(value):
            values[dimension.key] = value
    return values
