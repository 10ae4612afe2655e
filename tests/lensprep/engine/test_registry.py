"""The engines by name: what is refused, and what one more takes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lensprep.cli import main
from lensprep.convert import ConvertConfig, convert, runs
from lensprep.dataset import Dataset
from lensprep.engine import make_engine
from lensprep.engine.registry import ENGINES, Registered
from lensprep.errors import ConfigError
from tests.phase4c import tiny_table, write_tree


class BackwardsEngine:
    """An engine of somebody else: a cluster that does the last task first."""

    def __init__(self, scheduler=None, *, workers=None):
        self.scheduler, self.workers, self.done = scheduler, workers or 3, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.workers = 0

    def run(self, function, tasks):
        for task in reversed(tasks):
            self.done.append(task)
            yield function(task)


def test_another_engine_takes_a_line_and_gives_the_same_bytes(tmp_path, monkeypatch):
    tree = str(write_tree(tmp_path / "src", tiny_table(90), files_per_split=2, row_group_rows=20))
    convert(tree, str(tmp_path / "usual"), ConvertConfig(shard_rows=30), workers=1)
    monkeypatch.setitem(ENGINES, "backwards", Registered(__name__, "BackwardsEngine", "json"))
    with make_engine("backwards", scheduler="here:1") as engine:
        assert engine.scheduler == "here:1"
        convert(tree, str(tmp_path / "ds"), ConvertConfig(shard_rows=30), engine=engine)
        assert len(engine.done) > 2
    usual, ours = (Dataset.open(tmp_path / name).manifest for name in ("usual", "ds"))
    assert ours.dataset_id == usual.dataset_id
    with pytest.raises(ConfigError, match=r"dask or --engine spark or --engine backwards\.$"):
        make_engine("local", scheduler="here:1")


class ThreadsEngine(BackwardsEngine):
    """An engine of somebody else that runs its tasks at the same time in this process."""

    def run(self, function, tasks):
        with ThreadPoolExecutor(8) as threads:
            yield from threads.map(function, tasks)


def test_tasks_on_threads_of_one_process_give_the_same_bytes(tmp_path, monkeypatch):
    """Each thread has memory of its own: shared memory gave other pixels, and no error."""
    monkeypatch.setattr(runs, "RUN_ROWS", 20)
    tree = str(write_tree(tmp_path / "src", tiny_table(240), files_per_split=4, row_group_rows=20))
    convert(tree, str(tmp_path / "usual"), ConvertConfig(shard_rows=30), workers=1)
    monkeypatch.setitem(ENGINES, "threads", Registered(__name__, "ThreadsEngine"))
    with make_engine("threads", workers=8) as engine:
        convert(tree, str(tmp_path / "ds"), ConvertConfig(shard_rows=30), engine=engine)
    usual, ours = (Dataset.open(tmp_path / name).manifest for name in ("usual", "ds"))
    assert ours.dataset_id == usual.dataset_id


def test_the_command_line_offers_every_engine():
    (option,) = (p for p in main.commands["convert"].params if p.name == "engine_name")
    assert list(option.type.choices) == list(ENGINES)


def test_an_engine_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"no engine 'ray'\. Choose one of local, dask, spark\."):
        make_engine("ray")


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="--scheduler needs --engine"):
        make_engine("local", scheduler="tcp://h:8786")
    with pytest.raises(ConfigError, match="Give one of the two"):
        make_engine("dask", scheduler="tcp://h:8786", workers=2)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("dask", "distributed", ".[dask]"), ("spark", "pyspark", ".[spark]")],
)
def test_a_missing_engine_is_told_with_its_extra(name, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        make_engine(name)
    assert f"pip install '{extra}'" in str(caught.value)
