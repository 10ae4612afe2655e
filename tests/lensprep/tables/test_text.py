"""Tables of text: what separates, what is a heading, what is a number, and what is only text."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lensprep.tables.csvtext import guard_table
from lensprep.tables.positions import UNIT
from lensprep.tables.text import read_text

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "'"]
texts = st.text(st.characters(codec="utf-8"))


def read(path, text=("key",), columns=None):
    def plan(names):
        return {name: name for name in columns or names}

    return read_text(path, plan, text)[0]


def rows_of(tmp_path, content, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, **options).to_pydict()


PLAIN = {"key": ["0012", "b"], "label": [1, 0], "logit": [4.5, -3.0]}
SAME = {
    "csv": "key,label,logit\n0012,1,4.5\nb,0,-3\n",
    "crlf": "key,label,logit\r\n0012,1,4.5\r\nb,0,-3\r\n",
    "cr": "key,label,logit\r0012,1,4.5\rb,0,-3\r",
    "no last end": "key,label,logit\n0012,1,4.5\nb,0,-3",
    "mark": b"\xef\xbb\xbfkey,label,logit\n0012,1,4.5\nb,0,-3\n",
    "utf-16": "key\tlabel\tlogit\r\n0012\t1\t4.5\r\nb\t0\t-3\r\n".encode("utf-16"),
    "gzip": gzip.compress(b"key,label,logit\n0012,1,4.5\nb,0,-3\n"),
    "tab": "key\tlabel\tlogit\n0012\t1\t4.5\nb\t0\t-3\n",
    "semicolon": "key;label;logit\n0012;1;4.5\nb;0;-3\n",
    "bar": "key|label|logit\n0012|1|4.5\nb|0|-3\n",
    "decimal comma": "key;label;logit\n0012;1;4,5\nb;0;-3,0\n",
    "decimal comma, tab": "key\tlabel\tlogit\n0012\t1\t4,5\nb\t0\t-3,0\n",
    "blanks": "key  label logit\n0012  1     4.5\n  b   0    -3.0\n",
    "blanks and quotes": 'key label logit\n"0012" 1 4.5\nb 0 -3\n',
    "after comma": "key, label, logit\n0012, 1, 4.5\nb, 0, -3\n",
    "before comma": "key ,label , logit\n0012 , 1 , 4.5\nb , 0 , -3\n",
    "after comma in rows": "label,key,logit\n1, 0012, 4.5\n0, b, -3\n",
    "quotes after comma": 'key, label, "logit"\n"0012", "1", 4.5\n"b", "0", "-3"\n',
    "quoted": '"key","label","logit"\n"0012","1","4.5"\n"b","0","-3"\n',
    "comments": "# made, by\n#\n\nkey,label,logit\n# a note\n0012,1,4.5\n#\nb,0,-3\n# end\n",
    "comment is heading": "# made by\n# key label logit\n0012 1 4.5\nb 0 -3\n",
    "comment is heading, commas": "#key,label,logit\n0012,1,4.5\nb,0,-3\n",
    "comment of blanks over commas": "# key label logit\n0012,1,4.5\nb,0,-3\n",
    "plus signs": "key,label,logit\n0012,+1,+4.5\nb,0,-3\n",
    "units": "#RESOURCE=x\nkey\tlabel\tlogit\n\t \tmag\n----\t-\t-----\n0012\t1\t 4.5\nb\t0\t-3\n",
    "dashes": "key;label;logit\n----;-;---\n0012;1;4.5\nb;0;-3\n",
    "empty lines": "\n\nkey,label,logit\n\n0012,1,4.5\n\nb,0,-3\n\n",
    "true": "key,label,logit\n0012,True,4.5\nb,False,-3\n",
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_every_layout_holds_the_same(tmp_path, content):
    assert rows_of(tmp_path, content) == PLAIN


def test_sexagesimal_text_under_a_comment_is_no_heading(tmp_path):
    found = rows_of(tmp_path, "# key ra\nA 00:40:00\nB 00h41m00s\n")
    assert found == {"key": ["A", "B"], "ra": ["00:40:00", "00h41m00s"]}
    assert rows_of(tmp_path, "# by us\n2mass ra\nA 1\n") == {"2mass": ["A"], "ra": [1]}


def test_units_under_the_headings_are_kept(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('Name\t_RAJ2000\tRAJ2000\n \tdeg\t"h:m:s"\n--\t---\t---\nA\t10.5\t00 42 00\n')
    found = read(path)
    assert found.to_pydict() == {"Name": ["A"], "_RAJ2000": [10.5], "RAJ2000": ["00 42 00"]}
    assert [f.metadata[UNIT] for f in found.schema] == [b"", b"deg", b"h:m:s"]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2", ""], [1, 2, None]),
        (["1", "2.5", "NaN"], [1, 2.5, None]),
        (["18446744073709551615", "1"], [2**64 - 1, 1]),
        (["9007199254740993", "NA"], [2**53 + 1, None]),
        (["00:40:00", "12:30:00"], ["00:40:00", "12:30:00"]),
        (["2020-01-01", "2021-01-01"], ["2020-01-01", "2021-01-01"]),
        (["true", "False"], [True, False]),
        (["1", "x"], ["1", "x"]),
        (["", "NA"], [None, None]),
        (["1,5", "2"], ["1,5", "2"]),
    ],
)
def test_a_column_is_numbers_if_all_of_it_is(tmp_path, cells, values):
    lines = "\n".join(f'{n},"{cell}"' for n, cell in enumerate(cells))
    assert rows_of(tmp_path, f"n,x\n{lines}\n")["x"] == values


def test_a_column_is_judged_by_its_end_too(tmp_path):
    """A table sorted by label has no Einstein radius for its first megabytes."""
    path = tmp_path / "t.csv"
    path.write_text("key,theta,region\n" + "k,,1\n" * 400_000 + "k,1.5,north\n")
    found = read(path)
    assert found["theta"][-1].as_py() == 1.5
    assert found["theta"].null_count == 400_000
    assert found["region"][-1].as_py() == "north"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("# only\n# comments\n", "it is empty"),
        ("1,2\n3,4\n", "its first line holds numbers, not the names of columns"),
        ("# made by us\n1 2\n3 4\n", "its first line holds numbers"),
        ("a,b\n1,2\n#3,4\n", "its line 3 begins with # and has as many cells as a row"),
        ("a b\n1 2\n3\n", "its row 2 has 1 cells and its heading 2"),
        ("a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("a,b\nS\xe9te,2\n".encode("latin-1"), "its text is not UTF-8"),
        ("a,b\n1,2\n# S\xe9te\n".encode("latin-1"), "its text is not UTF-8"),
        ("a b\nS\xe9te 2\n".encode("latin-1"), "its text is not UTF-8"),
        (bytes(3000), "it holds bytes that are no text"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_was_found(tmp_path, content, message):
    with pytest.raises((ValueError, pa.ArrowException), match=message):
        rows_of(tmp_path, content)


def test_a_quoted_cell_may_begin_as_a_comment_and_span_lines(tmp_path):
    content = 'key,"a\nb"\n"#1",2\n"x\ny, z",3\n'
    assert rows_of(tmp_path, content) == {"key": ["#1", "x\ny, z"], "a\nb": [2, 3]}


def test_decimal_points_and_commas_together_are_text_and_not_guessed(tmp_path):
    assert rows_of(tmp_path, "n;x\n1;1,234\n2;1.5\n")["x"] == ["1,234", "1.5"]


def test_only_the_columns_that_are_wanted_are_read(tmp_path):
    assert rows_of(tmp_path, "a,key,b\n1,x,2\n", columns=["b", "key"]) == {"b": [2], "key": ["x"]}


@settings(max_examples=60)
@given(st.lists(texts.filter(lambda text: text != ""), min_size=1))
@example(FORMULAS)
@example(["null", "NA", "nan", "true", "1e5", "0012", '"', ",", "a\r\nb", "\x00", ' ,"', "x; y"])
@example(["#1", "\n#1,2", " "])
def test_any_text_survives_a_file(tmp_path_factory, values):
    table = pa.table({"=key": pa.array(values, pa.string()), "n": range(len(values))})
    path = tmp_path_factory.mktemp("text") / "x.csv"
    pcsv.write_csv(guard_table(table), path)
    found = read(path, ["=key"])
    assert found.column_names == ["=key", "n"]
    assert found["=key"].to_pylist() == values


def test_numbers_keep_their_sign_and_their_bits(tmp_path):
    logit = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * 10
    table = pa.table({"logit": logit, "label": pa.array([-1] * len(logit), pa.int8())})
    pcsv.write_csv(guard_table(table), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        assert np.float32(next(csv.DictReader(file))["logit"]) == logit[0]
    found = read(tmp_path / "x.csv")
    assert (found["logit"].to_numpy() == logit.astype(np.float64)).all()
    assert found["label"].to_pylist() == [-1] * len(logit)


def test_an_empty_cell_of_text_is_null(tmp_path):
    assert rows_of(tmp_path, 'name,n\n,1\n"",2\nA,3\n')["name"] == [None, None, "A"]
