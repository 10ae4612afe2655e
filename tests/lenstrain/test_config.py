"""The configuration, and every file in configs/."""

import ast
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import lenstrain.config
from lensprep.configfile import load_config, to_toml
from lensprep.errors import ConfigError
from lenstrain.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

OTHERS = ("sweep.toml",)  # of other commands, under test there
FOLDER = Path(__file__).parents[2] / "configs"
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "train.md"
CONFIGS = sorted(path for path in FOLDER.glob("*.toml") if path.name not in OTHERS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_in_configs_loads_and_survives_writing(path, tmp_path):
    config = load_config(Config, path)
    again = tmp_path / "again.toml"
    again.write_text(to_toml(config))
    assert load_config(Config, again) == config


def test_the_files_that_the_documentation_names_are_there():
    names = {path.name for path in CONFIGS}
    machines = {"demo.toml", "v100.toml", "a100.toml", "h100.toml", "ddp_node.toml"}
    assert {"resnet18.toml", *machines} <= names


@pytest.mark.parametrize(
    ("name", "amp", "compiled", "processes"),
    [
        ("v100.toml", "fp16", False, 1),  # has no bf16
        ("a100.toml", "bf16", True, 1),
        ("h100.toml", "bf16", True, 1),
        ("ddp_node.toml", "bf16", True, 8),
        ("demo.toml", "auto", False, 1),
    ],
)
def test_the_file_of_a_machine_suits_it(name, amp, compiled, processes):
    config = load_config(Config, FOLDER / name)
    assert (config.train.amp, config.train.compile) == (amp, compiled)
    assert config.model.arch == ("resnet_small" if name == "demo.toml" else "resnet18")
    assert config.model.stem == "fine"
    assert config.data.batch_size % processes == config.eval.batch_size % processes == 0
    # Between unscaled and linear in the batch from 3e-4 at 256; Adam wants less than linear.
    if name != "demo.toml":
        assert 3e-4 <= config.optim.lr <= 3e-4 * config.data.batch_size / 256
    assert config.train.min_delta == 0
    assert config.optim.min_lr == 1e-6


def test_the_table_of_the_how_to_states_what_the_files_say():
    rows = re.findall(r"^\| `(\w+\.toml)` \|.*\| (\d+) \|", HOW_TO.read_text(), re.M)
    assert {name for name, _ in rows} == {
        "resnet18.toml", "v100.toml", "a100.toml", "h100.toml", "ddp_node.toml", "demo.toml"
    }  # fmt: skip
    for name, batch in rows:
        assert load_config(Config, FOLDER / name).data.batch_size == int(batch)


def test_the_file_of_defaults_states_every_default():
    path = next(path for path in CONFIGS if path.name == "resnet18.toml")
    assert load_config(Config, path) == Config()
    first, rest = path.read_text().split("[data]", 1)
    written = {f"{section}.{key}" for section, keys in tomllib.loads(f"[data]{rest}").items()
               for key in keys}  # fmt: skip
    excepted = set(re.findall(r"(?:data|model|train)\.\w+", first))
    known = {f"{section.name}.{key.name}" for section in fields(Config)
             for key in fields(getattr(Config(), section.name))}  # fmt: skip
    assert written | excepted == known
    assert not written & excepted


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"'optim.learning_rat'.*Did you mean"):
        load_config(Config, None, ["optim.learning_rat=1"])
    with pytest.raises(ConfigError, match=r"Did you mean 'train.patience'"):
        load_config(Config, None, ["train.patince=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=0", "batch_size must be at least 1"),
        ("data.shift_px=9", "between 0 and 8"),
        ("model.crop=272", "between 16 and 256"),
        ("model.width=12", "multiple of 8"),
        ("model.dropout=1.0", r"\[0, 1\)"),
        ("model.blocks=[1,1]", "for resnet_small only"),
        ("model.arch=resnet50", "must be one of"),
        ("optim.min_lr=1.0", "min_lr <= lr"),
        ("optim.ema_decay=1.0", r"\[0, 1\)"),
        ("loss.label_smoothing=1.5", r"\[0, 1\)"),
        ("train.epochs=0", "at least 1"),
        ("train.patience=-1", "at least 0"),
        ("eval.fpr=0.0", "between 0 and 1"),
        ("eval.fpr=nan", "must be a number"),
    ],
)
def test_values_out_of_range_are_refused_with_the_value(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Config, None, [override])


def test_every_key_is_documented():
    """A string literal stands under every field of every section."""
    tree = ast.parse(Path(lenstrain.config.__file__).read_text())
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, below in zip(section.body, [*section.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                assert documented, f"{section.name}.{field.target.id}"


def test_numbers_of_numpy_reach_neither_run_folder_nor_checkpoint():
    made = Config(
        train=TrainConfig(seed=np.int64(3), patience=np.uint8(2)),
        optim=OptimConfig(lr=np.float32(0.5)),
        data=DataConfig(batch_size=np.int32(64), d4=np.bool_(False), cache_dir=Path("/nvme")),
        model=ModelConfig(arch=np.str_("resnet_small"), blocks=[np.int64(1), 1]),
    )
    overrides = ["train.seed=3", "train.patience=2", "optim.lr=0.5", "data.batch_size=64",
                 "data.d4=false", "data.cache_dir=/nvme", "model.arch=resnet_small",
                 "model.blocks=[1, 1]"]  # fmt: skip
    assert to_toml(made) == to_toml(load_config(Config, None, overrides))
    assert "np." not in to_toml(made)


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": True}, {"epochs": "3"}])
def test_a_configuration_made_in_python_refuses_other_types(options):
    with pytest.raises(ConfigError, match="must be of type int"):
        TrainConfig(**options)
