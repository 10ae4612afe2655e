"""Weights of a split's rows, read from a table of keys such as hard-negative mining writes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.errors import ConfigError, ProjectError
from lensprep.store import Uri
from lensprep.tables.columns import check_ids, to_floats
from lensprep.tables.reader import read_table, require_columns


def read_weights(path: Uri, keys: pa.ChunkedArray | pa.Array) -> NDArray[np.float64]:
    """Weights of a split's rows from a table of keys and weights; a row not in it weighs 1.

    Parameters
    ----------
    path : str or path
        Parquet, CSV, FITS or VOTable with columns key and weight, such as `lenstrain mine` writes.
    keys : pyarrow array of string, shape (rows,)
        Keys of the split in its order.

    Returns
    -------
    ndarray of float64, shape (rows,)

    Raises
    ------
    ConfigError
        If the file cannot be used: a duplicate key, a weight below 0 or not finite, or a key that
        the split does not have.
    """
    where = f"data.sample_weights = {str(path)!r}"
    try:
        file = read_table(path, ("key", "weight"), ("key",))
        require_columns(file, ("key", "weight"), path, "")
        check_ids(file.table["key"], "key", path)
        values = to_floats(file.table["weight"], "weight", path)
    except ProjectError as error:
        raise ConfigError(
            f"{where}: {error} A table with columns key and weight is needed; `lenstrain mine` "
            "writes one."
        ) from error
    listed = file.table["key"].cast(pa.string()).combine_chunks()
    if not np.isfinite(values).all() or (values < 0).any():
        raise ConfigError(f"{where}: a weight is negative or not finite.")
    if pc.count_distinct(listed).as_py() != len(listed):
        raise ConfigError(f"{where}: a key comes more than once.")
    index = pc.index_in(keys, value_set=listed)
    found = int(pc.count(index).as_py())
    if found < len(listed):
        raise ConfigError(
            f"{where}: {len(listed) - found:,} of its {len(listed):,} keys are not in the training "
            "split. Mine scores of `lenstrain infer --split train` on this dataset."
        )
    return np.append(values, 1.0)[np.asarray(index.fill_null(len(listed)).to_numpy())]
