"""Every place that a command is told may be in an object store, or is refused before any work."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

import lensprep.cli
import lenstrain.cli
from lensprep.terminal import LocalPath, Location

NO_PLACES = {
    "catalog_columns",
    "dataset_ids",
    "encryption",
    "endpoint_url",
    "engine_name",
    "factors",
    "fractions",
    "kms_key_id",
    "left_out",
    "only",
    "overrides",
    "profile",
    "rates",
    "region",
    "scheduler",
    "split",
    "split_fractions",
    "splits",
    "storage_class",
    "where",
}
"""Options of text that name no file or folder. (Of left_out a part does, which is read as one.)"""
ON_A_DISK = {
    ("lensprep", "bench", "folder"),
    ("lensprep", "convert", "keep_local"),
    ("lensprep", "download", "dataset"),
    ("lensprep", "upload", "dataset"),
    ("lenstrain", "cache clear", "folder"),
    ("lenstrain", "cache fill", "folder"),
    ("lenstrain", "cache status", "folder"),
    ("lenstrain", "cache verify", "folder"),
    ("lenstrain", "infer", "cache_dir"),
    ("lenstrain", "sweep", "study"),
}


def walk(group: click.Command, names: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from walk(command, (*names, name))
    else:
        yield " ".join(names), group


PARAMETERS = [
    pytest.param(program, name, command, parameter, id=f"{program} {name} {parameter.name}")
    for program, main in (("lensprep", lensprep.cli.main), ("lenstrain", lenstrain.cli.main))
    for name, command in walk(main)
    for parameter in command.params
]


@pytest.mark.parametrize(("program", "name", "command", "parameter"), PARAMETERS)
def test_every_parameter_that_names_a_place_has_the_type_of_one(program, name, command, parameter):
    kind = parameter.type
    if isinstance(kind, Location | LocalPath):
        assert isinstance(kind, LocalPath) == ((program, name, parameter.name) in ON_A_DISK)
        return
    assert not isinstance(parameter, click.Argument), "an argument names a place"
    assert not isinstance(kind, click.Path | click.File), "click's own type makes s3:/x of s3://x"
    if isinstance(kind, click.types.StringParamType):
        assert parameter.name in NO_PLACES, "say what it names: give it a type, or list it here"


def names_places(command: click.Command) -> bool:
    return any(type(parameter.type) is Location for parameter in command.params)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=f"{main.name} {name}")
        for main in (lensprep.cli.main, lenstrain.cli.main)
        for name, command in walk(main)
        if names_places(command)
    ],
)
def test_what_may_lie_in_a_store_comes_with_the_options_to_reach_it(command):
    assert {"endpoint_url", "profile", "region"} <= {p.name for p in command.params}
