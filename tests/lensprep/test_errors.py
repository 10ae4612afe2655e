"""Words of errors: a size is told in the unit that fits it."""

from __future__ import annotations

import pytest

from lensprep.errors import size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (673, "673 B"), (40e6, "40.0 MB"), (0.2e9, "200.0 MB"), (2.3e12, "2.3 TB")],
)
def test_a_size_comes_in_the_unit_that_fits_it(count, text):
    assert size_text(count) == text
