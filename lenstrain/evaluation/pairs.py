"""A lens and the same light without a lens, on the same host: which of the two scores higher.

Flux, colour, seeing, noise and host are equal within a pair, so nothing but the configuration of
the light can rank it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lensprep.dataset.layout import COUNTERFACTUAL, DONOR_TASK, HOST_TASK, LENSED


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Rows of a table that belong together; all arrays of shape (pairs,)."""

    lens: NDArray[np.int64]
    """Row of the host with the donor's arc."""
    light: NDArray[np.int64]
    """Row of the same host with the same light otherwise."""
    kind: NDArray[np.str_]
    """Kind of the latter."""


def find_pairs(table: pa.Table) -> Pairs:
    """Pair each counterfactual that is no lens with the lens of its family; empty without any.

    Parameters
    ----------
    table : pyarrow.Table
        With the columns counterfactual, host_task_id and donor_task_id, or without any of them.
    """
    names = (COUNTERFACTUAL, HOST_TASK, DONOR_TASK)
    if not {*names} <= {*table.column_names}:
        table = pa.table({name: pa.array([], pa.string()) for name in names})
    kind, host, donor = (table[name].cast(pa.string()) for name in names)
    rows = np.flatnonzero(pc.is_valid(kind).to_numpy())
    kinds = np.array(kind.take(pa.array(rows)).to_pylist(), np.str_)
    family = pc.binary_join_element_wise(host, donor, "/").take(pa.array(rows))
    is_lens = kinds == LENSED
    lenses = family.filter(pa.array(is_lens)).combine_chunks()
    place = pc.index_in(family.filter(pa.array(~is_lens)), value_set=lenses, skip_nulls=True)
    found = pc.is_valid(place).to_numpy()
    lens = rows[is_lens][place.drop_null().to_numpy().astype(np.int64)]
    return Pairs(lens, rows[~is_lens][found], kinds[~is_lens][found])


def wins(lens: NDArray[np.floating], light: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 where the lens of a pair scores higher, 0 where the light does, else 0.5; shape (pairs,).

    Their mean is the AUROC within pairs. `lens` and `light` are logits of each pair.
    """
    return 0.5 * (1.0 + np.sign(np.float64(lens) - light))
