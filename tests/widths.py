"""Human output at the widths that count: narrow and usual terminals, and a pipe."""

import re

import pytest

at_every_width = pytest.mark.parametrize("columns", [60, 80, None])
"""Parametrise over terminals of 60 and 80 columns, and None for a pipe."""

_UNBROKEN = re.compile(r"/|[0-9a-f]{32}|: ")
"""Lines that are left to the terminal to wrap: with a path, an id, or a sentence."""


def set_width(monkeypatch, columns):
    """Have Rich and Click write for a width."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))


def assert_fits(text, columns, *whole):
    """Nothing is cut, what must be whole is, and the lines of tables fit."""
    assert "…" not in text
    assert "..." not in text
    for words in whole:
        assert words in text, words
    too_long = [
        line
        for line in text.splitlines()
        if columns is not None and len(line) > columns and not _UNBROKEN.search(line)
    ]
    assert not too_long
