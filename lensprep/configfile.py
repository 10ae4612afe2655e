"""Configuration: frozen dataclasses filled from defaults, then a TOML file, then ``key=value``."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

from lensprep.dataset.files import read_file
from lensprep.errors import ConfigError, NotFoundError, StorageError

T = TypeVar("T")


def load_config(
    cls: type[T], path: str | PathLike[str] | None = None, overrides: Sequence[str] = ()
) -> T:
    """Build a configuration: defaults, then a file, then overrides.

    Parameters
    ----------
    cls : type
        A frozen dataclass; fields may be dataclasses themselves (sections).
    path : str or path, optional
        A TOML file, local or s3://.
    overrides : sequence of str
        ``section.key=value``, the value in TOML; text needs no quotes.

    Returns
    -------
    cls

    Raises
    ------
    ConfigError
        If the file cannot be read, a key is unknown (the message names the nearest known one), or
        a value has the wrong type or range.
    """
    mapping = _read_toml(path) if path is not None else {}
    for override in overrides:
        _apply_override(mapping, override)
    return from_mapping(cls, mapping)


def from_mapping(cls: type[T], mapping: Mapping[str, Any], prefix: str = "") -> T:
    """Build a configuration from nested mappings (see `load_config`)."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    values = {}
    for key, value in mapping.items():
        if key not in fields:
            raise ConfigError(_unknown(prefix + key, [prefix + name for name in fields]))
        values[key] = _convert(hints[key], value, prefix + key)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        where = f"[{prefix.rstrip('.')}] " if prefix else ""
        raise ConfigError(f"{where}{error}") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """A configuration as nested plain types; fields that are None are left out."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            value = to_mapping(value)
        elif isinstance(value, tuple):
            value = list(value)
        result[field.name] = value
    return result


def to_toml(config: Any) -> str:
    """A configuration as TOML that `load_config` reads back to an equal one."""
    return _toml_table(to_mapping(config), "")


def _read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(path).decode())
    except NotFoundError:
        raise ConfigError(f"{path}: no such configuration file.") from None
    except StorageError as error:
        raise ConfigError(str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def _apply_override(mapping: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: write it as section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is text: `--set model.arch=resnet18`
    for part in parts[:-1]:
        section = mapping.setdefault(part, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section.")
        mapping = section
    mapping[parts[-1]] = value


def _unknown(key: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown configuration key {key!r}.{hint} Known here: {', '.join(known)}."


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check a value against a field's type; ints become floats where a float is asked for."""
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a section; write [{key}] and its keys below.")
        return from_mapping(hint, value, key + ".")
    if origin is typing.Literal:
        return _literal(typing.get_args(hint), value, key)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(hint), value, key)
    if origin is tuple:
        return _tuple(typing.get_args(hint), value, key)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(hint, type) and type(value) is hint:
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{key} must be a number, got nan.")
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{key} must be of type {name}, got {value!r}.")


def _literal(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    raise ConfigError(f"{key} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _union(hints: tuple[Any, ...], value: Any, key: str) -> Any:
    errors = []
    for hint in hints:
        if hint is type(None):
            if value is None:
                return None
            continue
        try:
            return _convert(hint, value, key)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _tuple(hints: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key} must be a list, got {value!r}.")
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(_convert(hints[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if len(value) != len(hints):
        raise ConfigError(f"{key} must have {len(hints)} values, got {len(value)}.")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(_convert(hint, item, f"{key}[{i}]") for i, (hint, item) in pairs)


def _toml_table(mapping: Mapping[str, Any], name: str) -> str:
    values = {key: value for key, value in mapping.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items()]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            full = f"{name}.{key}" if name else key
            text += f"\n[{full}]\n{_toml_table(value, full)}"
    return text.lstrip("\n") if not name else text


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")
