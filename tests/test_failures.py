"""The page of failures quotes what the programs say: every message is one that the code can print.

A message is found if some text of the source holds its words, in their order, between what is
filled in; or if it is such a text filled in.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "failures.md"
FILLED = "…"
COMPILER = Path(setuptools.__file__).parent / "_distutils" / "spawn.py"
"""What pip shows where a package must be compiled."""


def quoted() -> list[str]:
    """Messages in the first column of the tables of what one sees."""
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(), re.M)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row) if " " in message]


@cache
def texts() -> list[str]:
    """All text of the source and of the Makefile, with `FILLED` where values are filled in."""
    sources = [*(ROOT / "lensprep").rglob("*.py"), *(ROOT / "lenstrain").rglob("*.py"), COMPILER]
    found = [(ROOT / "Makefile").read_text()]
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(flat, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w*\}|%[sd]|\$\(\w+\)", FILLED, node.value))
    return [text for text in found if " " in text]


def flat(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else FILLED


def words(text: str) -> list[str]:
    """What stands between the values that are filled in."""
    return [part.strip(" .") for part in text.split(FILLED) if part.strip(" .")]


@cache
def forms() -> list[re.Pattern[str]]:
    """The messages that have enough words of their own to be known when they are filled in."""
    wordy = [text for text in texts() if FILLED in text and len(text.replace(FILLED, "")) >= 15]
    return [re.compile(".+".join(map(re.escape, text.split(FILLED)))) for text in wordy]


def is_said(message: str) -> bool:
    """Whether a program may print the message."""
    order = re.compile(".*".join(map(re.escape, words(message))), re.S)
    return any(order.search(text) for text in texts()) or any(f.fullmatch(message) for f in forms())


@pytest.mark.parametrize("message", quoted())
def test_every_message_of_the_page_is_one_of_the_program(message):
    assert is_said(message)


def test_a_message_that_no_program_prints_is_found_out():
    assert len(quoted()) > 40
    assert not is_said("The moon is in the way of …")
