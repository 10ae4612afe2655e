"""Compiled training: how many graphs are made, counted by a backend that compiles nothing."""

import gc

import pytest

from lenstrain.networks.finder import build_model
from lenstrain.training.checkpoint import load_checkpoint
from lenstrain.training.train import train

COMPILED = ("train.compile=true", "optim.ema_decay=0.9")


@pytest.mark.parametrize(
    ("accumulate", "expected"),
    [
        (1, 1),
        (2, 1),
        (5, 2),  # 12 stamps are 3, 3, 2, 2, 2
        (50, 1),
    ],
)
def test_a_run_has_one_graph_for_each_size_of_batch(
    dataset, make_config, tmp_path, graphs, accumulate, expected
):
    """Two epochs, each with a filled last batch and a validation, which has a graph of its own."""
    options = ("model.norm=group", f"optim.accumulate={accumulate}", *COMPILED)
    result = train(dataset, make_config(*options), tmp_path / "run")
    assert (result["epochs"], result["step"]) == (2, 16)
    assert len(graphs) == expected + 1


@pytest.mark.slow
def test_every_network_of_a_process_is_compiled_and_leaves_nothing(
    dataset, make_config, tmp_path, graphs
):
    """As the trials of a sweep: torch's limit is eight, beyond which it compiles no more."""
    for number in range(1, 10):
        options = ("train.epochs=1", "data.limit=12", f"model.width={8 * number}", *COMPILED)
        train(dataset, make_config(*options), tmp_path / str(number))
        assert len(graphs) == 2 * number  # one of them for the validation
    gc.collect()
    assert [graph() is None for graph in graphs] == [True] * 16 + [False] * 2


def test_a_compiled_checkpoint_is_a_plain_one(dataset, make_config, tmp_path, graphs):
    config = make_config("train.epochs=1", *COMPILED)
    train(dataset, config, tmp_path / "run")
    assert len(graphs) == 2
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    plain = build_model(config.model)
    for part in ("model", "ema"):
        assert state[part].keys() == plain.state_dict().keys()
        plain.load_state_dict(state[part])
