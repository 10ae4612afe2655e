"""Fixtures of the tests of lenstrain."""

import json

import pyarrow.parquet as pq
import pytest

from tests.scoretables import make_table


@pytest.fixture
def write_scores(tmp_path):
    """Write a table of scores; returns its path."""

    def write(name="scores.parquet", metadata=None, **options):
        table = make_table(**options)
        if metadata is not None:
            table = table.replace_schema_metadata({"lenstrain": json.dumps(metadata)})
        pq.write_table(table, tmp_path / name)
        return tmp_path / name

    return write
