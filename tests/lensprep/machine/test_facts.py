"""What the system says of a machine, and what a container leaves of it."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from lensprep.extras import EXTRAS, REQUIRED
from lensprep.machine import facts
from lensprep.machine.facts import (
    Limits,
    extras_findings,
    find_machine,
    find_versions,
    group_limits,
)

DEPENDENCIES = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("own", "files", "limits"),
    [
        ("0::/", {}, Limits(None, None)),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, Limits(None, None)),
        ("0::/", {"cpu.max": "150000 100000", "memory.max": "4096"}, Limits(1.5, 4096)),
        (
            "0::/a/b",  # the smallest of all that it is in
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "a/b/memory.max": "9",
             "c/cpu.max": "100000 100000"},
            Limits(2.0, 9),
        ),
        (
            "5:cpu,cpuacct:/job\n4:memory:/job",  # version 1
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "50000",
             "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
             "cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000",
             "memory/job/memory.limit_in_bytes": "7",
             "memory/memory.limit_in_bytes": "9223372036854771712"},
            Limits(0.5, 7),
        ),
    ],
)  # fmt: skip
def test_the_smallest_limit_of_the_groups_counts(tmp_path, own, files, limits):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert group_limits(own, tmp_path) == limits


def test_what_is_to_be_mended_is_said(monkeypatch):
    monkeypatch.setattr(facts, "group_limits", lambda own: Limits(0.5, 2_000_000_000))
    monkeypatch.setattr(facts.os, "getloadavg", lambda: (1000.0, 0, 0))
    machine, findings = find_machine()
    assert machine["memory_limit_bytes"] == 2_000_000_000
    assert machine["memory_available_bytes"] <= 2_000_000_000
    said = {finding.item: finding.detail for finding in findings}
    assert "Give --workers 1 " in said["cores"]
    assert "1000.0 processors" in said["load"]
    assert said["memory"].startswith("There are 2.0 GB of memory.")


def test_the_lists_of_modules_are_those_of_the_declaration():
    packages = metadata.packages_distributions()

    def names(requirements):
        """Their names, and what is in brackets behind them."""
        return {
            name
            for each in requirements
            for name in re.findall(r"[a-z][\w-]*", each.partition(">")[0])
        }

    def distributions(modules):
        return {packages[module][0].lower().replace("_", "-") for module in modules}

    assert distributions(REQUIRED) == names(DEPENDENCIES["dependencies"])
    for extra, modules in EXTRAS.items():
        assert distributions(modules) == names(DEPENDENCIES["optional-dependencies"][extra])


def test_an_extra_that_lacks_a_package_is_not_installed(monkeypatch):
    packages = metadata.packages_distributions()
    versions, extras = find_versions()
    assert versions["numpy"] == metadata.version("numpy")
    assert extras["train"]
    assert extras_findings(versions, ("train",)) == []
    del packages["torch"]
    monkeypatch.setattr(facts.metadata, "packages_distributions", lambda: packages)
    versions, extras = find_versions()
    assert "torch" not in versions
    assert not extras["train"]
    assert extras["synth"]
    (finding,) = extras_findings(versions, ("train",))
    assert finding.detail.startswith("torch is not installed; the extra `train` brings it.")
    assert "pip install '.[train]'" in finding.detail
