"""A small tree and its dataset; nobody changes them."""

from __future__ import annotations

import pytest

from lensprep.convert import convert
from tests.lensprep.convert.conversions import CONFIG
from tests.phase4c import tiny_table, write_tree


@pytest.fixture(scope="session")
def table():
    return tiny_table(120)


@pytest.fixture(scope="session")
def tree(table, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("src"), table)


@pytest.fixture(scope="session")
def dataset(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ds"
    convert(str(tree), str(out), CONFIG, workers=1)
    return out
