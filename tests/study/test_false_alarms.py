"""In small samples a probe seldom fails without a difference; by its upper end it often did."""

import numpy as np

from tests.study import false_alarms


def test_small_samples_seldom_fail():
    runs = [false_alarms.probe_fails("sky_probe", np.random.default_rng(run), 100, 10, 0.2)
            for run in range(60)]  # fmt: skip
    sure, by_upper_end = np.mean(runs, axis=0)
    assert sure <= 0.1  # 5 % and two standard errors
    assert by_upper_end > 0.3


def test_a_difference_is_found():
    rng = np.random.default_rng(0)
    region, labels = false_alarms.draw_regions(rng, 300, 30)
    values = false_alarms.draw_values(rng, region, 0.2, 6) + 0.5 * labels[:, None]
    table = false_alarms.pa.table({"label": labels, "region_id": region})
    found = false_alarms.run_probe(values, table, false_alarms.CONFIG, 0.55)
    assert false_alarms.surely_above(found, 0.55)
