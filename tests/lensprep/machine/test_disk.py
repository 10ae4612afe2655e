"""The rates of a disk, measured with a file that nobody ever sees."""

from __future__ import annotations

import os
import shutil

import pytest

from lensprep.errors import StorageError
from lensprep.machine import disk, measure_disk


def test_a_disk_is_measured_and_left_as_it_was(tmp_path):
    found = measure_disk(tmp_path, seconds=0.05)
    assert found.write_bytes_per_s > 1e5
    assert found.read_bytes_per_s is None or found.read_bytes_per_s > 1e5
    assert found.free_bytes <= shutil.disk_usage(tmp_path).total
    assert list(tmp_path.iterdir()) == []
    assert found.text().startswith(f"{tmp_path}: ")


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    seen = []

    def interrupt(number):
        seen.extend(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "fdatasync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_disk(tmp_path)
    assert seen == []  # not even meanwhile: a kill leaves nothing either
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def write(number, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(disk.os, "write", write)
    with pytest.raises(StorageError, match=r"could not be written to: No space left on device\.$"):
        measure_disk(tmp_path)
