"""The configuration reader: precedence, types, and messages that help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from lensprep.configfile import from_mapping, load_config, to_mapping, to_toml
from lensprep.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    lr: float = 3e-4
    name: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    note: str | None = None

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


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
