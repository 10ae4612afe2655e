"""Ranges of a search: parsed from plain mappings, drawn from with any sampler.

A range is one of ::

    {low = 1e-5, high = 1e-2, log = true}     a number; an integer if both ends are
    {low = 0.0, high = 0.3, step = 0.1}
    {choices = ["bce", "focal"]}              or just a list
    {..., when = {"loss.name" = "focal"}}     drawn only if an earlier key has this value
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lensprep.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

_KEYS = {"low", "high", "log", "step", "choices", "when"}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One key and the values it may take."""

    key: str
    low: Any = None
    high: Any = None
    """Numbers, if there are no `choices`; integers are drawn if both are."""
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: dict[str, Any] = field(default_factory=dict)
    """Values that earlier keys must have."""

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the key is drawn, given what was drawn before it."""
        return all(values.get(key) == value for key, value in self.when.items())

    def draw(self, trial: BaseTrial) -> Any:
        """Draw a value."""
        if self.choices:
            # A database cannot hold a list as a category: its JSON names it.
            names = {_name(choice): choice for choice in self.choices}
            return names[trial.suggest_categorical(self.key, list(names))]
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = int(self.step or 1)
            return trial.suggest_int(self.key, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.choices:
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and bool(self.low <= value <= self.high)

    def stored(self, value: Any) -> Any:
        """A value as the study's database knows it."""
        return _name(value) if self.choices else value

    def examples(self) -> list[Any]:
        """Values to try a configuration with."""
        return list(self.choices) if self.choices else [self.low, self.high]


def _name(choice: Any) -> Any:
    return json.dumps(choice) if isinstance(choice, list) else choice


def draw_all(space: tuple[Dimension, ...], trial: BaseTrial) -> dict[str, Any]:
    """Draw every key that applies, in the order of the space."""
    values: dict[str, Any] = {}
    for dimension in space:
        if dimension.applies(values):
            values[dimension.key] = dimension.draw(trial)
    return values


def parse_space(mapping: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Read the ranges of a TOML's ``[space]``, nested by dots or tables.

    Raises
    ------
    ConfigError
        If there is none, or one is not a range.
    """
    space = tuple(_parse(key, value) for key, value in leaves(mapping))
    if not space:
        raise ConfigError("[space] is empty: name at least one key to search.")
    seen: set[str] = set()
    for dimension in space:
        late = [key for key in dimension.when if key not in seen]
        if late:
            raise ConfigError(
                f"[space] {dimension.key}: when names {late[0]!r}, which is not a range above it."
            )
        seen.add(dimension.key)
    return space


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested mappings by their dotted keys; a range is a value."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and not _KEYS & value.keys():
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parse(key: str, value: Any) -> Dimension:
    where = f"[space] {key}"
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {value!r} is one value, not a range: put it in [fixed].")
    unknown = sorted(set(value) - _KEYS)
    if unknown:
        raise ConfigError(f"{where}: unknown {unknown[0]!r}. Known: {', '.join(sorted(_KEYS))}.")
    when = value.get("when", {})
    if not isinstance(when, Mapping):
        raise ConfigError(f"{where}: when takes keys and their values, got {when!r}.")
    when = dict(leaves(when))
    if "choices" in value:
        choices = value["choices"]
        if value.keys() - {"choices", "when"} or not isinstance(choices, list) or not choices:
            raise ConfigError(f"{where}: choices takes a non-empty list, and no low or high.")
        return Dimension(key, choices=tuple(choices), when=when)
    low: Any = value.get("low")
    high: Any = value.get("high")
    log, step = value.get("log", False), value.get("step")
    for number in (low, high):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ConfigError(f"{where}: low and high must both be numbers.")
    if not low < high or (log and low <= 0) or (log and step is not None):
        raise ConfigError(
            f"{where}: low < high must hold, low must be above 0 with log, and log takes no step; "
            f"got low = {low}, high = {high}."
        )
    if step is not None and step <= 0:
        raise ConfigError(f"{where}: step must be above 0, got {step}.")
    return Dimension(key, low, high, bool(log), step, when=when)


def apply(mapping: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with the values of dotted keys set; the given one is not changed."""
    result = deepcopy(dict(mapping))
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return result
