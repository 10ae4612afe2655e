"""What tests ask of the batches of an epoch."""

from __future__ import annotations

import numpy as np

ROWS = 100
"""Training rows of the fixture ``root``."""


def real_index(batches):
    return [i for b in batches for i in b.index[b.weight > 0].tolist()]


def assert_true_to(batch, stored):
    pixels, labels = stored
    np.testing.assert_array_equal(batch.pixels.numpy(), pixels[batch.index.numpy()])
    np.testing.assert_array_equal(batch.labels.numpy(), labels[batch.index.numpy()])


def rest_after(loader, steps):
    """Take some steps, and return the loader's state there and the batches that would follow."""
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    state = loader.state_dict()
    return state, [b.index for b in batches]
