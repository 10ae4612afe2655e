"""Damaged tables of every format: read as something or refused in a line, never past the reader."""

from __future__ import annotations

import random

import pytest

from lensprep.errors import ScoresError
from lensprep.tables.reader import read_table
from tests.usertables import write_all


def damage(data: bytes, rng: random.Random) -> bytes:
    """One bit turned, an end cut off, some bytes overwritten, or a piece twice."""
    place = rng.randrange(len(data))
    spoilt = bytearray(data)
    match rng.randrange(4):
        case 0:
            spoilt[place] ^= 1 << rng.randrange(8)
        case 1:
            del spoilt[place:]
        case 2:
            for _ in range(8):
                spoilt[rng.randrange(len(data))] = rng.randrange(256)
        case _:
            spoilt[place:place] = data[max(0, place - 50) : place]
    return bytes(spoilt)


@pytest.mark.parametrize("rounds", [4, pytest.param(400, marks=pytest.mark.faults)])
def test_no_damaged_table_gets_past_the_reader(tmp_path, rounds):
    whole = tmp_path / "whole"
    whole.mkdir()
    write_all(whole)
    rng, refused = random.Random(0), []
    for path in [path for path in sorted(whole.iterdir()) if path.is_file()] * rounds:
        spoilt = tmp_path / path.name
        spoilt.write_bytes(damage(path.read_bytes(), rng))
        try:
            read_table(spoilt, text=["key"])
        except ScoresError as error:
            refused.append(str(error))
    assert len(refused) > 4 * rounds
    assert [message for message in refused if "\n" in message] == []
