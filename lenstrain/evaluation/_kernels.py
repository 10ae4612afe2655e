"""Compiled loops of the bootstrap; `bootstrap` checks what it hands them."""

import numpy as np
from numpy.typing import NDArray

from lensprep.kernel import kernel


@kernel
def pair_counts(
    starts: NDArray[np.int64],
    positive: NDArray[np.bool_],
    region: NDArray[np.int32],
    first: int,
    last: int,
    table: NDArray[np.int64],
) -> None:
    """Add twice the wins plus the ties against the negatives of regions first to last - 1.

    Blocks come in ascending order of score: `below` holds the negatives already passed, by
    region. Within a block, positives see `below` twice and the block's own negatives once.
    """
    width = last - first
    below = np.zeros(width, np.int64)
    after = np.zeros(width, np.int64)
    own = np.zeros(table.shape[0], np.int64)
    touched = np.empty(table.shape[0], np.int64)
    for block in range(starts.size - 2, -1, -1):
        begin, end = starts[block], starts[block + 1]
        n_touched = 0
        for row in range(begin, end):
            if positive[row]:
                if own[region[row]] == 0:
                    touched[n_touched] = region[row]
                    n_touched += 1
                own[region[row]] += 1
            elif first <= region[row] < last:
                after[region[row] - first] += 1
        for k in range(n_touched):
            target = table[touched[k], first:last]
            times = own[touched[k]]
            own[touched[k]] = 0
            for j in range(width):
                target[j] += times * (below[j] + after[j])
        for row in range(begin, end):
            if not positive[row] and first <= region[row] < last:
                below[region[row] - first] = after[region[row] - first]


@kernel
def curve_pass(
    starts: NDArray[np.int64],
    code: NDArray[np.int32],
    table: NDArray[np.float64],
    odds: NDArray[np.float64],
    limit: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Walk down all rows once for many resamples (lanes).

    Returns sums of shape (2 + n_prevalences, lanes): the area under the ROC curve in units of
    n1 n0, the part of it up to `limit` false positives, and sums of precision over the steps of
    recall for each row of `odds`.
    """
    lanes = limit.size
    n_odds = odds.shape[0]
    out = np.zeros((2 + n_odds, lanes))
    tp, fp = np.zeros(lanes), np.zeros(lanes)
    d_tp, d_fp = np.zeros(lanes), np.zeros(lanes)
    early = True
    for block in range(starts.size - 1):
        begin, end = starts[block], starts[block + 1]
        has_positive, has_negative = False, False
        d_tp[:] = 0.0
        d_fp[:] = 0.0
        for row in range(begin, end):
            if code[row] & 1:
                has_positive = True
                step = table[code[row], 1]
                for r in range(lanes):
                    d_tp[r] += step[r]
            else:
                has_negative = True
                step = table[code[row], 0]
                for r in range(lanes):
                    d_fp[r] += step[r]
        if has_negative:
            area = out[0]
            for r in range(lanes):
                area[r] += d_fp[r] * (tp[r] + 0.5 * d_tp[r])
            if early:
                early = _add_partial(tp, fp, d_tp, d_fp, limit, out[1])
            for r in range(lanes):
                fp[r] += d_fp[r]
        if has_positive:
            for r in range(lanes):
                tp[r] += d_tp[r]
            for k in range(n_odds):
                odd, total = odds[k], out[2 + k]
                for r in range(lanes):
                    total[r] += d_tp[r] * tp[r] / max(tp[r] + odd[r] * fp[r], 1e-300)
    return out


@kernel
def _add_partial(
    tp: NDArray[np.float64],
    fp: NDArray[np.float64],
    d_tp: NDArray[np.float64],
    d_fp: NDArray[np.float64],
    limit: NDArray[np.float64],
    area: NDArray[np.float64],
) -> bool:
    """Add the part of one step that lies below `limit`; return whether any lane can continue."""
    early = False
    for r in range(limit.size):
        width = min(d_fp[r], limit[r] - fp[r])
        if width > 0:
            area[r] += width * (tp[r] + 0.5 * d_tp[r] * width / d_fp[r])
        early |= fp[r] + d_fp[r] < limit[r]
    return early


@kernel
def walk_negatives(
    starts: NDArray[np.int64],
    region: NDArray[np.int32],
    weights: NDArray[np.float64],
    limits: NDArray[np.float64],
    first: int,
    last: int,
    first_out: NDArray[np.int64],
) -> None:
    """First negative (its block's first row) that each ascending limit leaves out.

    A block counts for a resample only if it holds a drawn region, so the threshold is the score
    of a negative that is in the resample.
    """
    n_limits = limits.shape[0]
    for resample in range(first, last):
        weight = weights[resample]
        count, k, block = 0.0, 0, 0
        while k < n_limits and block < starts.size - 1:
            after = count
            for row in range(starts[block], starts[block + 1]):
                after += weight[region[row]]
            while k < n_limits and after > limits[k, resample]:
                first_out[k, resample] = starts[block]
                k += 1
            count = after
            block += 1
        for rest in range(k, n_limits):
            first_out[rest, resample] = region.size


@kernel
def weigh_prefixes(
    region: NDArray[np.int32],
    upto: NDArray[np.int64],
    resample: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Weighted sizes of prefixes of the rows, for ascending prefix lengths `upto`."""
    counts = np.zeros(weights.shape[1])
    out = np.empty(upto.size)
    row = 0
    for k in range(upto.size):
        while row < upto[k]:
            counts[region[row]] += 1.0
            row += 1
        total = 0.0
        weight = weights[resample[k]]
        for j in range(counts.size):
            total += counts[j] * weight[j]
        out[k] = total
    return out
