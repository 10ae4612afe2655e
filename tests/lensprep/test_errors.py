"""Words of errors: sizes, and what kept a file from being read."""

from __future__ import annotations

import errno

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import (
    NotFoundError,
    StorageError,
    names_text,
    passing_fault,
    plain_text,
    size_text,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (673, "673 B"), (40e6, "40.0 MB"), (0.2e9, "200.0 MB"), (2.3e12, "2.3 TB")],
)
def test_a_size_comes_in_the_unit_that_fits_it(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            PermissionError(errno.EACCES, "why"),
            StorageError,
            "a/b cannot be read: Permission denied.",
        ),
        (OSError(errno.EIO, "why"), StorageError, "a/b cannot be read: Input/output error."),
        (FileNotFoundError(errno.ENOENT, "why"), NotFoundError, "a/b: no such file."),
        (pa.ArrowMemoryError("malloc"), StorageError, "There is not enough memory to read a/b."),
    ],
)
def test_what_lies_outside_of_a_file_is_no_fault_of_its_content(error, kind, text):
    found = passing_fault("a/b", error)
    assert type(found) is kind
    assert str(found).startswith(text)


def test_bytes_that_are_not_parquet_are_a_fault_of_the_content(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(pa.ArrowInvalid) as caught:
        pq.ParquetFile(tmp_path / "a.parquet")
    assert passing_fault("a.parquet", caught.value) is None
    assert passing_fault("a.parquet", OSError("Unexpected end of stream")) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:a/b@host:9/x", "at http://host:9/x"),
        ("at s3://KEY:secret@bucket/x", "at s3://bucket/x"),
        ("s3://bucket/a@b.tar", "s3://bucket/a@b.tar"),
        ("two\nlines\x1b[31m", "two lines?[31m"),
    ],
)
def test_what_others_wrote_is_shown_in_one_line_without_passwords_and_orders(text, shown):
    assert plain_text(text) == shown


def test_of_thousands_of_names_the_first_are_names_text():
    assert names_text("abc") == "a, b, c"
    assert names_text([str(n) for n in range(5000)], most=3) == "0, 1, 2 and 4,997 more"
