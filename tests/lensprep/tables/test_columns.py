"""Columns that were read: what a user calls them, ids that are none, text among numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lensprep.errors import ConfigError, ScoresError
from lensprep.tables.columns import check_ids, parse_columns, to_floats


def test_what_a_table_calls_its_columns_is_said_in_one_way():
    known = ("key", "ra", "dec")
    expected = {"ra": "RA_DEG", "key": "objid"}
    for texts in (["ra=RA_DEG,id=objid"], ["ra=RA_DEG", "id=objid"], ["key=objid, ra = RA_DEG"]):
        assert parse_columns(texts, known) == expected
    assert parse_columns(["ra=RA, of 2000,dec=D=x"], known) == {"ra": "RA, of 2000", "dec": "D=x"}
    for wrong in ("redshift=z", "ra", "ra=", "=x", "ra=a,ra=b", ""):
        with pytest.raises(ConfigError, match=r"--columns .*NAME=COLUMN.*one of key, ra, dec"):
            parse_columns([wrong], known)


MISSING = [
    (pa.array([1.0, np.nan, None, 4.0]), 2),
    (pa.array(["a", "", " ", "NaN", "None", "nan", "<NA>", "b", None]), 7),
    (pa.array([1, None]), 1),
    (pa.array([np.nan] * 2500, pa.float32()), "2,500"),
]


@pytest.mark.parametrize(("column", "count"), MISSING)
def test_ids_that_are_none_are_counted(column, count):
    message = rf"t: {count} rows have no region_id \(null, NaN or empty\)"
    with pytest.raises(ScoresError, match=message):
        check_ids(pa.chunked_array([column]), "region_id", "t", repeated=True)


def test_a_name_that_comes_once_may_be_nan():
    check_ids(pa.chunked_array([["nan", "None", "a"]]), "key", "t")
    with pytest.raises(ScoresError, match="t: 2 rows have no key"):
        check_ids(pa.chunked_array([["nan", "", " "]]), "key", "t")


@pytest.mark.parametrize(("kind", "digits"), [(np.float64, 53), (np.float32, 24)])
def test_ids_that_cannot_be_told_apart_are_refused(kind, digits):
    fine = pa.chunked_array([pa.array(np.array([0, -5, 2**digits - 1], kind))])
    check_ids(fine, "region_id", "t")
    ids = pa.chunked_array([pa.array(np.array([1, 2**digits, -(2**digits) - 2], kind))])
    message = rf"t: 2 values of region_id are floats beyond 2\^{digits}, .* integers or text"
    with pytest.raises(ScoresError, match=message):
        check_ids(ids, "region_id", "t")


def test_text_among_numbers_is_named():
    column = pa.chunked_array([["1.5", None, "4,2"]])
    with pytest.raises(ScoresError, match=r"column x holds string, not numbers \(first: '4,2'\)"):
        to_floats(column, "x", "t")
