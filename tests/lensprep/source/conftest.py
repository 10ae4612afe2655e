"""A small tree, and all its rows."""

import pyarrow as pa
import pytest

from tests.phase4c import tiny_table, write_tree


@pytest.fixture(scope="module")
def rows():
    return tiny_table(48)


@pytest.fixture
def tree(tmp_path, rows):
    return write_tree(tmp_path / "stamps", rows)


def read_all(source, columns=None):
    return pa.concat_tables(
        source.read_row_group(file, index, columns)
        for file in source.files
        for index in range(len(file.row_groups))
    )
