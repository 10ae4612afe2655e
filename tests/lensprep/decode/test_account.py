"""The account: every row in one place, and the sum always the input."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lensprep.decode.account import Account

OUTCOMES = ["", "cutout_not_ok", "where", "nonfinite", "missing_band"]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["train", "val", "test", "unknown"]),
        st.sampled_from(["0", "1", "unknown"]),
        st.sampled_from(OUTCOMES),
    )
)


def balance(part):
    return part["accepted"] + sum(part["filtered"].values()) + sum(part["rejected"].values())


@given(ROWS)
def test_the_account_balances_in_all_and_in_every_cell(rows):
    account = Account()
    account.add(*(zip(*rows, strict=True) if rows else ([], [], [])))
    summary = account.summary()
    assert summary["input_rows"] == balance(summary) == len(rows) == account.input_rows
    cells = [cell for split in summary["splits"].values() for cell in split.values()]
    assert all(cell["input_rows"] == balance(cell) for cell in cells)
    assert sum(cell["input_rows"] for cell in cells) == len(rows)
    rejected = summary["rejected"]
    assert sum(rejected.values()) == sum(r[2] in ("nonfinite", "missing_band") for r in rows)


@given(ROWS, ROWS)
def test_merging_parts_is_counting_all(first, second):
    parts = Account()
    for rows in (first, second):
        part = Account()
        part.add(*(zip(*rows, strict=True) if rows else ([], [], [])))
        part = Account.from_list(part.to_list())
        part.read_again = len(rows)
        parts.merge(part)
    whole = Account()
    both = first + second
    whole.add(*(zip(*both, strict=True) if both else ([], [], [])))
    assert parts.to_list() == whole.to_list()
    assert parts.summary()["read_again"] == len(both)


def test_moving_a_row_keeps_the_input():
    account = Account()
    account.add(["val", "val"], ["1", "1"], ["", ""])
    account.move("val", "1", "duplicate_row")
    summary = account.summary()
    assert (summary["input_rows"], summary["accepted"]) == (2, 1)
    assert summary["rejected"] == {"duplicate_row": 1}
