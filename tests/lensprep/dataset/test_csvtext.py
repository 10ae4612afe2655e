"""Text in CSV: no formula gets through, and all of it comes back."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lensprep.dataset.csvtext import guard_table, guard_text, read_csv, unguard_text

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


@given(st.lists(texts.filter(lambda text: text != ""), min_size=1))
@example(FORMULAS)
@example(["null", "NA", "nan", "true", "1e5", "0012", '"', ",", "a\r\nb", "\x00"])
def test_any_text_survives_a_file(values):
    table = pa.table({"=key": pa.array(values, pa.string()), "n": range(len(values))})
    sink = pa.BufferOutputStream()
    pcsv.write_csv(guard_table(table), sink)
    found = read_csv(pa.BufferReader(sink.getvalue()), ["=key"])
    assert found.column_names == ["=key", "n"]
    assert found["=key"].to_pylist() == values


def test_numbers_keep_their_sign_and_their_bits(tmp_path):
    logit = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * 10
    table = pa.table({"logit": logit, "label": pa.array([-1] * len(logit), pa.int8())})
    pcsv.write_csv(guard_table(table), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        assert np.float32(next(csv.DictReader(file))["logit"]) == logit[0]
    found = read_csv(tmp_path / "x.csv")
    assert (found["logit"].to_numpy() == logit.astype(np.float64)).all()
    assert found["label"].to_pylist() == [-1] * len(logit)


def test_an_empty_cell_of_text_is_null(tmp_path):
    (tmp_path / "x.csv").write_text('name,n\n,1\n"",2\nA,3\n')
    assert read_csv(tmp_path / "x.csv")["name"].to_pylist() == [None, None, "A"]
