"""The configuration reader: precedence, types, and messages that help."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from lensprep.configfile import converted, from_mapping, load_config, to_mapping, to_toml, typed
from lensprep.errors import ConfigError


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    lr: float = 3e-4
    name: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    note: str | None = None

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


@typed
@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    optim: Optim = field(default_factory=Optim)
    names: tuple[str, ...] = ()
    epochs: int = 10
    fast: bool = False


def test_an_override_beats_the_file_and_the_file_beats_the_default(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("epochs = 3\n[optim]\nlr = 1e-3\n")
    config = load_config(Config, path, ["optim.lr=1"])
    assert (config.epochs, config.optim.lr, config.optim.name) == (3, 1.0, "adamw")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "Did you mean 'optim.lr'"),
        (["epoch=1"], "Did you mean 'epochs'"),
        (["base=1"], "Unknown configuration key 'base'. Known here: optim, names, epochs, fast."),
        (["optim.lr=-1"], "lr must be positive, got -1.0"),
        (["optim.lr=fast"], "optim.lr must be of type float, got 'fast'"),
        (["epochs=1.5"], "epochs must be of type int"),
        (["epochs=true"], "epochs must be of type int"),
        (["optim.name=adam"], "one of 'adamw', 'sgd'"),
        (["optim.betas=[0.9]"], "must have 2 values"),
        (["optim=3"], "write [optim]"),
        (["epochs.deep=3", "epochs"], "section.key=value"),
        (["optim.lr=nan"], "got nan"),
    ],
)
def test_a_bad_override_names_the_key_and_the_remedy(overrides, message):
    with pytest.raises(ConfigError) as error:
        load_config(Config, None, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(Config, tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("epochs = = 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(Config, broken)


def test_toml_text_reads_back_to_the_same_configuration(tmp_path):
    config = load_config(Config, None, ['optim.note=a "quoted" \\ café\t', 'names=["x", "y"]'])
    path = tmp_path / "out.toml"
    path.write_text(to_toml(config))
    assert load_config(Config, path) == config
    assert from_mapping(Config, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("hint", "value", "plain"),
    [
        (int, np.int64(3), 3),
        (int, np.uint8(3), 3),
        (float, 3, 3.0),
        (float, np.float32(0.5), 0.5),
        (float, np.int64(2), 2.0),
        (float, Fraction(1, 4), 0.25),
        (bool, np.bool_(True), True),
        (str, np.str_("a"), "a"),
        (str, Path("a/b"), "a/b"),
        (Literal["a", 4], np.str_("a"), "a"),
        (Literal["a", 4], np.int32(4), 4),
        (int | None, None, None),
        (tuple[int, ...], [np.int64(1), 2], (1, 2)),
    ],
)
def test_values_of_numpy_and_paths_become_plain_ones(hint, value, plain):
    found = converted(hint, value, "key")
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True),
        (int, np.bool_(True)),
        (int, 3.0),
        (int, np.float64(3)),
        (int, "3"),
        (int, None),
        (float, False),
        (float, np.bool_(False)),
        (float, "0.5"),
        (float, 1j),
        (bool, 1),
        (bool, "true"),
        (str, 3),
        (str, b"a"),
        (Literal[1, 2], True),
        (int | None, 1.5),
    ],
)
def test_a_value_of_another_type_is_refused(hint, value):
    with pytest.raises(ConfigError, match="key must be"):
        converted(hint, value, "key")


def test_a_configuration_made_in_python_is_held_to_its_types_like_one_from_a_file():
    config = Config(optim={"lr": np.float32(0.5)}, epochs=np.int64(3), names=["a", Path("b")])
    assert config == from_mapping(Config, {"optim": {"lr": 0.5}, "epochs": 3, "names": ["a", "b"]})
    assert to_toml(config) == to_toml(from_mapping(Config, to_mapping(config)))
    with pytest.raises(ConfigError, match="epochs must be of type int"):
        Config(epochs=1.5)
    with pytest.raises(ConfigError, match="fast must be of type bool, got 1"):
        replace(config, fast=1)
    with pytest.raises(TypeError, match="epoch"):  # a name that Python itself refuses
        Config(epoch=1)


def test_a_value_of_another_choice_keeps_no_caller_alive():
    """An error that is kept holds the frames of all callers, and with them a loader's thread."""

    class Caller:
        def choose(self, value):
            return converted(str | int | None, value, "key")

    gc.disable()
    try:
        for value in (None, 3):
            caller = Caller()
            gone = weakref.ref(caller)
            assert caller.choose(value) == value
            del caller
            assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"[space]\n[search]\n",
            "is the file of a sweep: `lenstrain sweep DATASET --config` takes",
        ),
        (b"[data]\n[optim]\n", "is a training configuration: `lenstrain train DATASET --config`"),
        (b"[scores]\n", "is a file of thresholds: `lenstrain audit RUN DATASET --config`"),
        (b' {"epochs": 3}', "is JSON, not TOML"),
        (b"PK\x03\x04\xff", "is a zip file or a checkpoint, not TOML"),
        (b"epochs = ", "is not valid TOML"),
        (b"\xff", "is not valid TOML"),
        (None, "is a folder. Name a file in it, such as config.toml"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, data, message):
    path = tmp_path / "c.toml"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        load_config(Config, path)
    assert message in str(error.value)


def test_the_files_of_the_commands_are_told_apart():
    """By the sections that they really have."""
    from lensprep.configfile import _KINDS
    from lenstrain.audit.config import AuditConfig
    from lenstrain.config import Config as TrainingConfig
    from lenstrain.sweep.config import SweepConfig

    classes = (TrainingConfig, SweepConfig, AuditConfig)
    assert list(_KINDS.values()) == [{field.name for field in fields(cls)} for cls in classes]
