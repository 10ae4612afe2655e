"""Configuration: frozen dataclasses filled from defaults, then a TOML file, then ``key=value``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import operator
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import tomli_w

from lensprep.errors import ConfigError, NotFoundError, StorageError, names_text
from lensprep.store import S3Options, is_remote, local_path, read_file

T = TypeVar("T")


def load_config(
    cls: type[T],
    path: str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    options: S3Options | None = None,
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
    options : S3Options, optional
        How to reach an object store.

    Returns
    -------
    cls

    Raises
    ------
    ConfigError
        If the file cannot be read, a key is unknown (the message names the nearest known one), or
        a value has the wrong type or range.
    """
    mapping = _read_toml(path, cls, options) if path is not None else {}
    for override in overrides:
        _apply_override(mapping, override)
    return from_mapping(cls, mapping)


def packaged_files(package: str, folder: str) -> dict[str, Path]:
    """Configuration files that come with a package, by name, which is without ``.toml``."""
    found = Path(str(files(package))).joinpath(folder).glob("*.toml")
    return {path.stem: path for path in sorted(found)}


def find_file(name: str, package: str, folder: str) -> str:
    """Location of a configuration file, which may be given by the name of a packaged one.

    Parameters
    ----------
    name : str
        A location, which is returned as it is; or a bare word such as ``demo``. A file of that
        path wins over the one that comes with the package.
    package, folder : str
        Where the packaged files are; see `packaged_files`.

    Raises
    ------
    ConfigError
        If there is no such file and its name, a bare word or without folder and suffix, is that of
        a packaged one; or if a bare word is neither. The message has the names.
    """
    if is_remote(name) or local_path(name).is_file():
        return name
    known = packaged_files(package, folder)
    if not re.fullmatch(r"[\w-]+", name):
        stem = Path(name).stem
        if stem not in known or local_path(name).exists():
            return name
        raise ConfigError(
            f"{name}: no such configuration file. {stem} comes with {package}: name it without "
            "folder and suffix."
        )
    if name not in known:
        raise ConfigError(
            f"{name}: no such configuration file, and {package} has none of that name. It has "
            f"{names_text(known, name)}."
        )
    return str(known[name])


def typed(cls: type[T]) -> type[T]:
    """Have a configuration hold the plain types it declares, however it is made.

    Class decorator for dataclasses whose fields are named when they are made. A value is converted
    as `converted` does before the class's own checks see it: NumPy's 3 becomes the 3 that a
    checkpoint can be loaded with, and 1.5 is no seed.
    """
    hints, make = typing.get_type_hints(cls), cls.__init__

    @functools.wraps(make)
    def made(self: Any, **given: Any) -> None:
        make(self, **{n: converted(hints[n], v, n) if n in hints else v for n, v in given.items()})

    cls.__init__ = made  # type: ignore[method-assign]
    return cls


def from_mapping(cls: type[T], mapping: Mapping[str, Any], prefix: str = "") -> T:
    """Build a configuration from nested mappings (see `load_config`)."""
    hints = typing.get_type_hints(cls)
    known = _names(cls)
    values = {}
    for key, value in mapping.items():
        if key not in known:
            raise ConfigError(_unknown(prefix + key, [prefix + name for name in known]))
        values[key] = converted(hints[key], value, prefix + key)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        where = f"[{prefix.rstrip('.')}] " if prefix else ""
        raise ConfigError(f"{where}{error}") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """A configuration as nested plain types; fields that are None are left out."""

    def plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        given = {name: value for name, value in fields if value is not None}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}

    return dataclasses.asdict(config, dict_factory=plain)


def to_toml(config: Any) -> str:
    """A configuration as TOML that `load_config` reads back to an equal one."""
    return tomli_w.dumps(to_mapping(config))


_KINDS: Mapping[str, frozenset[str]] = {
    "a training configuration: `lenstrain train DATASET --config`": frozenset(
        ("data", "model", "optim", "loss", "train", "eval")
    ),
    "the file of a sweep: `lenstrain sweep DATASET --config`": frozenset(
        ("base", "fixed", "search", "refit", "space")
    ),
    "a file of thresholds: `lenstrain audit RUN DATASET --config`": frozenset(
        ("purpose", "data", "run", "scores", "science", "seed", "resamples")
    ),
}
"""The project's own configuration files by their sections, to recognise one that was mixed up."""


_MOST_BYTES: Final = 1 << 20
"""No configuration file is longer."""


def _read_toml(path: str | PathLike[str], cls: type, options: S3Options | None) -> dict[str, Any]:
    if not is_remote(path) and local_path(path).is_dir():
        raise ConfigError(f"{path} is a folder. Name a file in it, such as config.toml.")
    try:
        data = read_file(path, options, most=_MOST_BYTES)
        mapping = tomllib.loads(data.decode())
    except NotFoundError:
        raise ConfigError(f"{path}: no such configuration file.") from None
    except StorageError as error:
        raise ConfigError(str(error)) from error
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply for a configuration.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = f"is not valid TOML: {error}"
        if data.startswith(b"PK"):
            what = "is a zip file or a checkpoint, not TOML"
        elif data.lstrip()[:1] == b"{":
            what = "is JSON, not TOML"
        raise ConfigError(f"{path} {what}. Name a configuration file, such as RUN/config.toml."
                          ) from None  # fmt: skip
    foreign = mapping.keys() - {*_names(cls)}
    for kind, sections in _KINDS.items():
        if foreign and foreign <= sections:
            raise ConfigError(f"{path} is {kind} takes it.")
    return mapping


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(typing.cast(Any, cls))]


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
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown configuration key {key!r}.{hint} Known here: {', '.join(known)}."


def converted(hint: Any, value: Any, key: str) -> Any:
    """Give a value the plain type asked for, or refuse it.

    Parameters
    ----------
    hint : type
        ``int``, ``float``, ``str``, ``bool``, a ``Literal``, tuple, union or dataclass of them.
    value : object
        Numbers and text of NumPy become Python's, ints floats, paths text and mappings the
        dataclass asked for. A bool is no number, and a float no int.
    key : str
        What messages call it.

    Raises
    ------
    ConfigError
        If it is of another type.
    """
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
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
        inner = typing.get_args(hint)[1]
        if inner is Any:
            return dict(value)
        return {str(n): converted(inner, each, f"{key}.{n}") for n, each in value.items()}
    plain = _plain(hint, value)
    if plain is None:
        name = getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{key} must be of type {name}, got {value!r}.")
    if isinstance(plain, float) and math.isnan(plain):
        raise ConfigError(f"{key} must be a number, got nan.")
    return plain


def _plain(hint: Any, value: Any) -> Any:
    """The value as just this type, or None."""
    if hint is bool or isinstance(value, bool | np.bool_):
        return bool(value) if hint is bool and isinstance(value, bool | np.bool_) else None
    if hint is int:
        with suppress(TypeError):
            return operator.index(value)
    elif hint is float and isinstance(value, numbers.Real):
        return float(value)
    elif hint is str and isinstance(value, PathLike):
        value = os.fspath(value)
    if hint is str and isinstance(value, str):
        return str.__str__(value)
    return None


def _literal(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    for choice in choices:
        if _plain(type(choice), value) == choice:
            return choice
    raise ConfigError(f"{key} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _union(hints: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in hints:
        return None
    refusals = []  # texts: an error that is kept keeps all callers alive until a collection
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return converted(hint, value, key)
        except ConfigError as error:
            refusals.append(str(error))
    raise ConfigError(refusals[0])


def _tuple(hints: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key} must be a list, got {value!r}.")
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(converted(hints[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if len(value) != len(hints):
        raise ConfigError(f"{key} must have {len(hints)} values, got {len(value)}.")
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(converted(hint, item, f"{key}[{i}]") for i, (hint, item) in pairs)
