"""A small dataset that can be learnt, and a run that takes a second."""

import functools
import weakref

import pytest
import torch

from lensprep.configfile import load_config
from lenstrain.config import Config
from tests.datasets import tiny_dataset

TINY = (
    "model.arch=resnet_small",
    "model.width=8",
    "model.blocks=[1,1]",
    "model.crop=16",
    "data.batch_size=12",
    "eval.batch_size=18",
    "optim.lr=2e-3",
    "train.epochs=2",
    "train.log_every=3",
    "train.device=cpu",
    "train.pictures=false",
)


@pytest.fixture(autouse=True, scope="module")
def in_one_thread(one_thread):
    """Bits depend on the number of threads."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """90 training rows (the last batch of 12 has 6), 40 to validate on."""
    folder = tmp_path_factory.mktemp("training")
    rows = {"train": 90, "val": 40, "test": 30}
    return str(tiny_dataset(folder, rows, shard_rows=32, signal=True))


@pytest.fixture(scope="session")
def make_config():
    """Builds the configuration of a run that takes a second, with overrides."""

    def make(*overrides: str) -> Config:
        return load_config(Config, None, [*TINY, *overrides])

    return make


class Graphs(list):
    """A backend: weak references to the graphs that it was given, which it runs as they are."""

    def __call__(self, graph, inputs):
        sizes = [each.shape if isinstance(each, torch.Tensor) else (each,) for each in inputs]
        assert all(type(size) is int for shape in sizes for size in shape), "a graph for any size"
        self.append(weakref.ref(graph))
        return graph.forward


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that compiled networks have; see `Graphs`."""
    found = Graphs()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=found))
    yield found
    torch.compiler.reset()
