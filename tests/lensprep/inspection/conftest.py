"""The tree and the dataset that tests of conversions have."""

from tests.lensprep.convert.conftest import dataset, table, tree

__all__ = ["dataset", "table", "tree"]
