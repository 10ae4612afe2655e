"""Text in CSV: no formula gets through, and all of it comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensprep.tables.csvtext import guard_text, unguard_text

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "'"]
texts = st.text(st.characters(codec="utf-8"))


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run_is_plain_text(text):
    assert guard_text(text) == f"'{text}"


@given(texts)
def test_guarding_is_undone(text):
    assert unguard_text(guard_text(text)) == text


@given(texts, texts)
def test_no_two_texts_are_guarded_alike(one, other):
    assert (guard_text(one) == guard_text(other)) == (one == other)


@pytest.mark.parametrize("text", ["J12+5", "a=b", "", "0012", "é"])
def test_other_text_is_left_as_it_is(text):
    assert guard_text(text) == unguard_text(text) == text
