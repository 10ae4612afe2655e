"""Every sin that needs no new training is caught, and a clean run is not accused."""

import pytest

from tests.study import sins


@pytest.mark.slow
def test_sins_are_caught_and_a_clean_run_is_not_accused(tmp_path):
    found = sins.study(tmp_path, sins.ROWS, [*sins.IN_THE_RUN, *sins.IN_THE_DATA], print)
    assert found.missed == []
    assert found.false_alarms == []
    assert "| none (the clean run) |" in sins.markdown(found)
